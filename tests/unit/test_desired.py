from __future__ import annotations

import hashlib
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.supervisor.desired import (
    Context,
    Desired,
    Memory,
    WorkerBase,
    WorkerDesired,
    changes,
    resolve,
)
from garrison.supervisor.keys import parse_scope, scopes_of
from garrison.supervisor.stores.base import Entry, Snapshot

HOST = "h1"
SCOPES = ("h1", "@group/web", "@group/db", "@all")


def check_budget(document: Any, base: Any) -> Any:
    if not isinstance(document, dict) or not all(isinstance(value, int) for value in document.values()):
        raise ValueError("a budget has numbers")
    return dict(base or {}) | document


def context(**options: Any) -> Context:
    options = {
        "host": HOST,
        "groups": ("web", "db"),
        "workers": {"process": WorkerBase({"a": 1, "b": {"c": 1}}, {"cpu": 10}), "network": WorkerBase()},
        "check_budget": check_budget,
        "check_aggregate": check_budget,
    } | options
    return Context(**options)


def server(scope: str, rest: str) -> str:
    return f"/hids/server/config/{scope}/{rest}"


def plugin(scope: str, name: str, worker: str = "process") -> str:
    return f"/hids/agent/config/{scope}/plugin/{worker}/{name}"


def snap(values: dict[str, bytes | str], revision: int = 1, history: str = "a", **options: Any) -> Snapshot:
    entries = {
        key: Entry(value.encode() if isinstance(value, str) else value, revision) for key, value in values.items()
    }
    return Snapshot(entries, revision, history, **options)


def process(values: dict[str, bytes | str], **options: Any) -> WorkerDesired:
    return resolve(snap(values), context(**options))[0].workers["process"]


WORKER = "worker/process"


def test_without_keys_everything_is_as_in_the_file() -> None:
    desired, memory = resolve(snap({}), context())
    worker = desired.workers["process"]
    assert (worker.action, worker.decided_by) == ("start", "default")
    assert worker.settings == {"a": 1, "b": {"c": 1}}
    assert worker.budget == {"cpu": 10}
    assert desired.groups == ("web", "db")
    assert memory == Memory(history="a", resets=memory.resets)
    assert desired.problems == ()


def test_the_more_specific_scope_wins_and_groups_go_by_the_hosts_order() -> None:
    values: dict[str, bytes | str] = {}
    for scope, action in zip(reversed(SCOPES), ("stop", "freeze", "start", "stop"), strict=True):
        values[server(scope, WORKER)] = action
        worker = process(values)
        assert (worker.action, worker.decided_by) == (action, server(scope, WORKER))
    for scope in SCOPES[:-1]:
        del values[server(scope, WORKER)]
        following = SCOPES[SCOPES.index(scope) + 1]
        assert process(values).decided_by == server(following, WORKER)


def test_settings_are_laid_over_the_files_field_by_field_at_the_top() -> None:
    worker = process({plugin("@all", "settings"): '{"b": {"d": 2}, "x": null}'})
    assert worker.settings == {"a": 1, "b": {"d": 2}, "x": None}
    assert worker.settings_by == plugin("@all", "settings")


def test_only_the_winning_document_counts() -> None:
    worker = process({plugin("@all", "settings"): '{"x": 1}', plugin("h1", "settings"): '{"y": 1}'})
    assert "x" not in worker.settings


def test_a_budget_is_checked_against_the_files() -> None:
    assert process({plugin("@all", "budget"): '{"memory": 5}'}).budget == {"cpu": 10, "memory": 5}


def test_the_hash_covers_settings_log_level_and_rules_and_nothing_else() -> None:
    plain = process({}).hash
    assert process({server("@all", WORKER): "stop"}).hash == plain
    assert process({plugin("@all", "settings"): '{"b": {"c": 1}, "a": 1}'}).hash == plain
    hashes = {
        plain,
        process({plugin("@all", "settings"): '{"a": 2}'}).hash,
        process({server("@all", f"{WORKER}/log_level"): "debug"}).hash,
        process({plugin("@all", "rules"): "[]"}).hash,
    }
    assert len(hashes) == 4


def test_the_revision_is_the_highest_of_the_keys_that_decide() -> None:
    entries = {
        server("@all", WORKER): Entry(b"stop", 9),
        server("h1", WORKER): Entry(b"stop", 3),
        plugin("@all", "settings"): Entry(b"{}", 5),
    }
    assert resolve(Snapshot(entries, 9, "a"), context())[0].workers["process"].revision == 5


# -- refusal --------------------------------------------------------------------------------------------------


def test_a_refused_value_leaves_what_was_in_force() -> None:
    key = server("h1", WORKER)
    _, memory = resolve(snap({key: "stop"}), context())
    desired, memory = resolve(snap({key: "stopp"}, 2), context(), memory)
    worker = desired.workers["process"]
    assert (worker.action, worker.decided_by, worker.revision) == ("stop", key, 1)
    assert [(p.key, p.revision, p.kind) for p in worker.problems] == [(key, 2, "refused")]
    assert "'stopp' is not one of start, stop, freeze" in worker.problems[0].reason
    desired, memory = resolve(snap({key: "start"}, 3), context(), memory)
    assert desired.workers["process"].action == "start"
    assert not desired.problems


def test_a_refused_value_of_a_more_specific_scope_leaves_what_the_other_decided() -> None:
    common = {server("@all", WORKER): "stop"}
    _, memory = resolve(snap(common), context())
    desired, _ = resolve(snap(common | {server("h1", WORKER): "?"}, 2), context(), memory)
    assert desired.workers["process"].action == "stop"


def test_without_memory_the_next_valid_value_holds_and_without_any_the_default() -> None:
    bad = {server("h1", WORKER): "?", server("@group/web", WORKER): ""}
    assert process(bad | {server("@all", WORKER): "freeze"}).action == "freeze"
    assert process(bad).decided_by == "default"


def test_a_refused_key_that_goes_reveals_the_next_scope() -> None:
    common = {server("@all", WORKER): "freeze"}
    _, memory = resolve(snap({server("h1", WORKER): "stop"} | common), context())
    _, memory = resolve(snap({server("h1", WORKER): "?"} | common, 2), context(), memory)
    desired, _ = resolve(snap(common, 3), context(), memory)
    assert desired.workers["process"].action == "freeze"


def test_what_was_accepted_is_checked_again_when_the_file_has_changed() -> None:
    key = plugin("h1", "budget")
    _, memory = resolve(snap({key: '{"cpu": 5}'}), context())

    def stricter(document: Any, base: Any) -> Any:
        raise ValueError("too much")

    desired, _ = resolve(snap({key: "?"}, 2), context(check_budget=stricter), memory)
    assert desired.workers["process"].budget_by == "default"


def test_an_inline_document_over_4_kib_is_refused_with_the_way_out() -> None:
    desired, _ = resolve(snap({plugin("h1", "settings"): '{"a": "' + "x" * 5000 + '"}'}), context())
    assert "store it as a body" in desired.problems[0].reason


def test_an_entry_that_the_store_could_not_read_is_refused_with_the_stores_words() -> None:
    entries = {server("h1", WORKER): Entry(b"", 1, "it is a FIFO")}
    desired, _ = resolve(Snapshot(entries, 1, "a"), context())
    assert desired.problems[0].reason == "it is a FIFO"


# -- bodies ---------------------------------------------------------------------------------------------------


def test_a_body_is_waited_for_and_then_taken() -> None:
    body = b'{"a": 7}'
    sha256 = hashlib.sha256(body).hexdigest()
    key = plugin("@all", "settings")
    _, memory = resolve(snap({key: '{"a": 5}'}), context())
    waiting, memory = resolve(snap({key: f"id:{sha256}"}, 2), context(), memory)
    assert waiting.missing_bodies == (sha256,)
    assert waiting.workers["process"].settings["a"] == 5
    assert [problem.kind for problem in waiting.problems] == ["pending"]
    assert "not available yet" in waiting.problems[0].reason
    there, memory = resolve(snap({key: f"id:{sha256}"}, 2), context(bodies={sha256: body}), memory)
    assert there.workers["process"].settings["a"] == 7
    assert there.missing_bodies == ()
    garbage, _ = resolve(snap({key: "?"}, 3), context(), memory)
    assert garbage.workers["process"].settings["a"] == 7


def test_a_body_that_does_not_match_its_name_is_refused() -> None:
    sha256 = hashlib.sha256(b"{}").hexdigest()
    desired, _ = resolve(snap({plugin("@all", "settings"): f"id:{sha256}"}), context(bodies={sha256: b'{"a": 2}'}))
    assert "does not match its name" in desired.problems[0].reason
    assert desired.workers["process"].settings["a"] == 1


# -- local overrides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "local", "action", "by"),
    [
        ("start", "stop", "stop", "local"),
        ("start", "freeze", "freeze", "local"),
        ("freeze", "stop", "stop", "local"),
        ("stop", "freeze", "stop", server("@all", WORKER)),
        ("stop", "stop", "stop", server("@all", WORKER)),
        ("stop", None, "stop", server("@all", WORKER)),
        (None, "stop", "stop", "local"),
        (None, None, "start", "default"),
    ],
)
def test_the_local_override_and_the_store(store: str | None, local: str | None, action: str, by: str) -> None:
    worker = process(
        {server("@all", WORKER): store} if store else {}, local={"process": local} if local is not None else {}
    )
    assert (worker.action, worker.decided_by) == (action, by)


# -- resets ---------------------------------------------------------------------------------------------------


def test_any_new_value_in_any_scope_changes_the_reset_token_and_a_delete_does_not() -> None:
    own, shared = server("h1", f"{WORKER}/reset"), server("@all", f"{WORKER}/reset")
    tokens = []
    memory = Memory()
    for entries in (
        {},
        {own: Entry(b"1", 1)},
        {own: Entry(b"1", 1), shared: Entry(b"x", 2)},
        {own: Entry(b"1", 1)},
        {own: Entry(b"1", 5)},
        {},
    ):
        desired, memory = resolve(Snapshot(entries, 9, "a"), context(), memory)
        tokens.append(desired.workers["process"].reset_token)
    assert tokens[0] == ""
    assert tokens[2] == tokens[3]
    assert tokens[4] == tokens[5]
    assert len(set(tokens)) == 4


# -- groups and the master --------------------------------------------------------------------------------------


def test_groups_from_the_store_are_in_force_once_the_snapshot_covers_them() -> None:
    values: dict[str, bytes | str] = {
        server("@all", "master"): '{"groups": ["new"]}',
        server("@group/new", WORKER): "stop",
        server("@group/web", WORKER): "freeze",
    }
    partial, memory = resolve(snap(values, groups=("web", "db")), context())
    assert partial.groups == ("new",)
    assert not partial.complete
    whole, _ = resolve(snap(values, groups=("new",)), context(), memory)
    assert whole.complete
    assert whole.workers["process"].action == "stop"
    assert whole.groups_by == server("@all", "master")


def test_an_incomplete_snapshot_teaches_nothing_but_the_groups() -> None:
    _, memory = resolve(snap({server("@group/web", WORKER): "stop"}, groups=("web", "db")), context())
    values = {server("@all", "master"): '{"groups": ["new"]}'}
    _, later = resolve(snap(values, 2, groups=("web", "db")), context(), memory)
    assert later.slots.keys() == memory.slots.keys() | {"groups"}


def test_a_group_cannot_change_the_groups() -> None:
    desired, _ = resolve(
        snap({server("@group/web", "master"): '{"groups": ["x"], "heartbeat_seconds": 30}'}), context()
    )
    assert desired.groups == ("web", "db")
    assert desired.master.heartbeat_seconds == 30
    assert "a group cannot change" in desired.problems[0].reason


def test_a_document_of_the_host_without_groups_leaves_those_of_all() -> None:
    desired, _ = resolve(
        snap({server("@all", "master"): '{"groups": ["x"]}', server("h1", "master"): '{"log_level": "debug"}'}),
        context(),
    )
    assert desired.groups == ("x",)
    assert desired.master.log_level == "debug"


def test_a_broken_master_document_moves_no_host() -> None:
    key = server("h1", "master")
    _, memory = resolve(snap({key: '{"groups": ["x"]}'}), context())
    desired, _ = resolve(snap({key: '{"groups": ["y"], "grups": []}'}, 2), context(), memory)
    assert desired.groups == ("x",)
    assert len(desired.problems) == 1
    assert "grups" in desired.problems[0].reason


def test_the_aggregate_budget_is_checked_where_the_files_values_are_known() -> None:
    key = server("@all", "master")
    desired, memory = resolve(snap({key: '{"aggregate": {"cpu": 20}}'}), context(aggregate={"memory": 1}))
    assert desired.master.aggregate == {"memory": 1, "cpu": 20}
    desired, _ = resolve(snap({key: '{"aggregate": {"cpu": "?"}}'}, 2), context(aggregate={"memory": 1}), memory)
    assert desired.master.aggregate == {"memory": 1, "cpu": 20}
    assert "a budget has numbers" in desired.problems[0].reason


def test_kafka_keys_are_read() -> None:
    desired, _ = resolve(snap({"/hids/kafka/host": "k1:9092,k2", "/hids/kafka/topic": "t"}), context())
    assert (desired.kafka_servers, desired.kafka_topic) == (("k1:9092", "k2"), "t")
    assert desired.kafka_by == ("/hids/kafka/host", "/hids/kafka/topic")


# -- another history ------------------------------------------------------------------------------------------


def test_absence_in_another_history_changes_nothing_until_the_key_is_written_again() -> None:
    key = server("@all", WORKER)
    _, memory = resolve(snap({key: "stop"}), context())
    desired, memory = resolve(snap({}, 1, "b"), context(), memory)
    assert (desired.workers["process"].action, desired.workers["process"].decided_by) == ("stop", key)
    assert [problem.kind for problem in desired.problems] == ["held"]
    desired, memory = resolve(snap({}, 2, "b"), context(), memory)
    assert desired.workers["process"].action == "stop"
    desired, memory = resolve(snap({key: "freeze"}, 3, "b"), context(), memory)
    assert desired.workers["process"].action == "freeze"
    desired, memory = resolve(snap({}, 4, "b"), context(), memory)
    assert desired.workers["process"].decided_by == "default"


def test_a_held_value_keeps_its_scope() -> None:
    _, memory = resolve(snap({server("h1", WORKER): "stop"}), context())
    desired, memory = resolve(snap({server("@all", WORKER): "start"}, 1, "b"), context(), memory)
    assert desired.workers["process"].action == "stop"
    _, memory = resolve(snap({server("@all", WORKER): "stop"}, 1, "a"), context(), Memory())
    desired, _ = resolve(snap({server("h1", WORKER): "start"}, 1, "b"), context(), memory)
    assert desired.workers["process"].action == "start"


def test_groups_are_held_as_well() -> None:
    _, memory = resolve(snap({server("h1", "master"): '{"groups": ["x"]}'}), context())
    desired, _ = resolve(snap({}, 1, "b"), context(), memory)
    assert desired.groups == ("x",)


# -- strangers ------------------------------------------------------------------------------------------------


def test_unknown_keys_and_workers_are_reported_with_the_nearest() -> None:
    desired, _ = resolve(
        snap(
            {
                server("@all", "worker/proces"): "stop",
                server("@all", "kilswitch"): "on",
                server("h1", "task/1"): "{}",
                server("someone-else", "worker/nothing"): "stop",
            }
        ),
        context(local={"netwrk": "stop"}),
    )
    assert [(problem.key, problem.kind) for problem in desired.problems] == [
        (server("@all", "kilswitch"), "unknown"),
        (server("@all", "worker/proces"), "unknown"),
        ("local", "unknown"),
    ]
    assert "nearest 'process'" in desired.problems[1].reason
    assert "killswitch" in desired.problems[0].reason
    assert "nearest 'network'" in desired.problems[2].reason


def test_a_killswitch_that_cannot_be_read_is_listed() -> None:
    desired, _ = resolve(snap({server("@all", "killswitch"): "maybe"}), context())
    assert "counts as engaged" in desired.problems[0].reason


def test_the_list_of_problems_is_bounded() -> None:
    desired, _ = resolve(snap({f"/hids/server/config/@all/x{number}": "" for number in range(1000)}), context())
    assert len(desired.problems) == 201
    assert "800 more" in desired.problems[-1].reason


# -- changes --------------------------------------------------------------------------------------------------


def test_changes_name_the_slot_the_key_and_both_hashes() -> None:
    old, memory = resolve(snap({}), context())
    assert changes(None, old) == []
    new, memory = resolve(snap({server("@all", WORKER): "stop"}, 2), context(), memory)
    (change,) = changes(old, new)
    assert (change.slot, change.key, change.accepted) == ("process/action", server("@all", WORKER), True)
    assert change.old_hash != change.new_hash
    assert changes(new, new) == []


def test_a_refusal_is_told_once() -> None:
    key = server("@all", WORKER)
    first, memory = resolve(snap({key: "stop"}), context())
    second, memory = resolve(snap({key: "?"}, 2), context(), memory)
    (change,) = changes(first, second)
    assert (change.key, change.accepted, change.revision) == (key, False, 2)
    assert "is not one of" in change.reason
    third, _ = resolve(snap({key: "?"}, 2), context(), memory)
    assert changes(second, third) == []


# -- properties -----------------------------------------------------------------------------------------------

RESTS = (WORKER, f"{WORKER}/log_level", f"{WORKER}/reset", "master", "killswitch", "worker/unknown", "nonsense")
all_keys = st.one_of(
    st.builds(server, st.sampled_from(SCOPES), st.sampled_from(RESTS)),
    st.builds(plugin, st.sampled_from(SCOPES), st.sampled_from(("settings", "budget", "rules", "nonsense"))),
    st.sampled_from(("/hids/kafka/host", "/hids/kafka/topic", "/nonsense", "")),
)
all_values = st.one_of(
    st.sampled_from(
        [b"start", b"stop", b"freeze", b"on", b"{}", b'{"a": 2}', b'{"groups": ["db"]}', b"id:" + b"0" * 64, b"debug"]
    ),
    st.binary(max_size=20),
)
snapshots = st.builds(
    lambda entries, revision, history: Snapshot(
        {key: Entry(value, number) for key, (value, number) in entries.items()}, revision, history
    ),
    st.dictionaries(all_keys, st.tuples(all_values, st.integers(1, 9)), max_size=12),
    st.integers(1, 9),
    st.sampled_from("ab"),
)
overrides = st.dictionaries(st.sampled_from(("process", "network", "nobody")), st.sampled_from(("stop", "freeze")))


def run(steps: list[Snapshot], **options: Any) -> tuple[Desired | None, Memory]:
    desired, memory = None, Memory()
    for snapshot in steps:
        desired, memory = resolve(snapshot, context(**options), memory)
    return desired, memory


@settings(max_examples=200)
@given(st.lists(snapshots, min_size=1, max_size=4), overrides)
def test_garbage_never_raises_and_the_memory_survives_the_disk(steps: list[Snapshot], local: dict[str, Any]) -> None:
    desired, memory = run(steps, local=local)
    assert desired is not None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(memory), type=Memory) == memory
    msgspec.json.encode(desired)
    for name, override in local.items():
        if name in desired.workers:
            assert desired.workers[name].action in ("stop", override)


@settings(max_examples=200)
@given(st.lists(snapshots, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_the_result_does_not_depend_on_the_order_of_the_keys(steps: list[Snapshot], order: random.Random) -> None:
    shuffled = []
    for step in steps:
        items = list(step.entries.items())
        order.shuffle(items)
        shuffled.append(msgspec.structs.replace(step, entries=dict(items)))
    assert run(steps) == run(shuffled)


def test_every_refused_value_above_the_accepted_one_stays_listed() -> None:
    values: dict[str, bytes | str] = {
        f"/hids/agent/config/{scope}/plugin/process/settings": value
        for scope, value in (("h1", "bad"), ("@group/web", "worse"), ("@group/db", "{}"))
    }
    first, memory = resolve(snap(values), context())
    again, _ = resolve(snap(values), context(), memory)
    assert [problem.key.split("/")[4] for problem in again.problems] == ["@group", "h1"]
    assert again == first


def test_a_value_held_below_refused_ones_stays_held_and_every_refusal_stays_listed() -> None:
    def settings_of(scope: str) -> str:
        return f"/hids/agent/config/{scope}/plugin/process/settings"

    _, memory = resolve(snap({settings_of("@group/db"): "{}"}), context())
    replaced = snap({settings_of("h1"): "bad", settings_of("@group/web"): "worse"}, history="b")
    first, memory = resolve(replaced, context(), memory)
    again, later = resolve(replaced, context(), memory)
    assert [problem.kind for problem in first.problems] == ["held", "refused", "refused"]
    assert again == first
    assert later == memory


@settings(max_examples=2000)
@given(st.lists(snapshots, min_size=1, max_size=3))
def test_to_resolve_the_same_again_changes_nothing(steps: list[Snapshot]) -> None:
    desired, memory = run(steps)
    again, later = resolve(steps[-1], context(), memory)
    assert again == desired
    assert later == memory


@given(
    st.dictionaries(st.sampled_from(SCOPES), st.sampled_from(("start", "stop", "freeze")), max_size=4),
    st.sampled_from(SCOPES),
    st.binary(max_size=12),
)
def test_a_refused_value_never_changes_what_is_in_force(actions: dict[str, str], scope: str, garbage: bytes) -> None:
    values: dict[str, bytes | str] = {server(each, WORKER): action for each, action in actions.items()}
    before, memory = resolve(snap(values), context())
    bad = b"?" + garbage
    after, _ = resolve(snap(values | {server(scope, WORKER): bad}, 2), context(), memory)
    assert after.workers["process"].action == before.workers["process"].action


@given(st.dictionaries(st.sampled_from(SCOPES), st.sampled_from(("start", "stop", "freeze")), min_size=1))
def test_precedence_is_a_total_order_and_deleting_the_winner_reveals_the_next(actions: dict[str, str]) -> None:
    ordered = [scope for scope in SCOPES if scope in actions]
    _, memory = None, Memory()
    for position in range(len(ordered) + 1):
        values: dict[str, bytes | str] = {server(scope, WORKER): actions[scope] for scope in ordered[position:]}
        desired, memory = resolve(snap(values, position + 1), context(), memory)
        worker = desired.workers["process"]
        expected = (actions[ordered[position]], server(ordered[position], WORKER)) if values else ("start", "default")
        assert (worker.action, worker.decided_by) == expected


@given(snapshots)
def test_a_stop_of_the_store_beats_a_local_start_and_a_local_stop_beats_everything(snapshot: Snapshot) -> None:
    free, _ = resolve(snapshot, context())
    held, _ = resolve(snapshot, context(local={"process": "stop", "network": "stop"}))
    assert {worker.action for worker in held.workers.values()} == {"stop"}
    for name, worker in free.workers.items():
        if worker.action == "stop":
            assert held.workers[name].decided_by == worker.decided_by


def test_scopes_of_the_tests_are_those_of_the_host() -> None:
    assert tuple(map(str, scopes_of(HOST, ("web", "db")))) == SCOPES
    assert [parse_scope(scope) for scope in SCOPES] == list(scopes_of(HOST, ("web", "db")))
