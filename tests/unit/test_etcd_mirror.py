"""What is read, what is watched, and what is held of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.stores.base import Entry
from garrison.supervisor.stores.etcd.aim import aim_at
from garrison.supervisor.stores.etcd.bodies import Wanted
from garrison.supervisor.stores.etcd.endpoints import choose_ip, first_index, parse_endpoint
from garrison.supervisor.stores.etcd.errors import kind_of
from garrison.supervisor.stores.etcd.mirror import Mirror
from garrison.supervisor.stores.etcd.results import Event, KeyValue

AIM = aim_at("/hids", "web1", ("web",), ("old",))
KEYS = [
    "/hids/server/config/@all/killswitch",
    "/hids/server/config/@group/old/killswitch",
    "/hids/server/config/@all/worker/process",
    "/hids/server/config/web1/worker/process",
    "/hids/server/config/web1/nonsense",
    "/hids/kafka/host",
]


def test_every_prefix_ends_in_a_slash_and_ranges_cover_each_prefix_without_overlap() -> None:
    assert all(prefix.endswith("/") for prefix in AIM.prefixes)
    assert AIM.lone_keys == ("/hids/server/config/@group/old/killswitch",)
    for key in (*KEYS, "/hids/server/config/@all/task/1", "/hids/server/config/@all/zzz"):
        assert sum(_within(key, first, end) for first, end in AIM.ranges) == 1, key
    for key in ("/hids/server/config/web10/killswitch", "/hids/server/config/@group/old/worker/process"):
        assert not any(_within(key, first, end) for first, end in AIM.ranges)


def test_tasks_are_read_last() -> None:
    first = [first for first, _ in AIM.ranges]
    assert all(key.endswith("/task/") for key in first[-3:])
    assert not any(key.endswith("/task/") for key in first[:-3])


def _within(key: str, first: str, end: str) -> bool:
    return first <= key < end if end else key == first


@given(changes=st.lists(st.tuples(st.sampled_from(KEYS), st.binary(max_size=5), st.booleans()), max_size=40))
def test_a_mirror_kept_by_events_equals_one_that_was_filled(changes: list[tuple[str, bytes, bool]]) -> None:
    kept = Mirror(AIM, "/hids")
    kept.fill([], 1)
    state: dict[str, KeyValue] = {}
    for revision, (key, value, deleted) in enumerate(changes, 2):
        event = Event(key, b"" if deleted else value, revision, deleted)
        kept.take_kills([event])
        kept.take([event])
        if deleted:
            state.pop(key, None)
        else:
            state[key] = KeyValue(key, value, 1, revision, 1, 0)
    filled = Mirror(AIM, "/hids")
    filled.fill(list(state.values()), max(1, len(changes) + 1))
    assert kept.snapshot("h") == filled.snapshot("h")
    assert kept.kills("h") == filled.kills("h")
    assert kept.tally() == filled.tally()


def test_a_key_that_is_only_repeated_is_no_change_of_a_killswitch() -> None:
    mirror = Mirror(AIM, "/hids")
    mirror.fill([KeyValue(KEYS[0], b"on", 1, 5, 1, 0)], 5)
    assert not mirror.take_kills([Event(KEYS[0], b"on", 5, False)])
    assert mirror.take_kills([Event(KEYS[0], b"", 6, True)])


@given(host=st.text(min_size=1, max_size=20), count=st.integers(1, 9), attempt=st.integers(0, 100))
def test_choices_are_within_what_there_is_and_stay_the_same(host: str, count: int, attempt: int) -> None:
    assert 0 <= first_index(host, count) < count
    ips = [f"10.0.0.{number}" for number in range(count)]
    assert choose_ip(ips, host, attempt) == choose_ip(ips, host, attempt)
    assert {choose_ip(ips, host, attempt + step) for step in range(count)} == set(ips)


def test_endpoints_are_spread_over_a_fleet() -> None:
    first = [first_index(f"host{number}", 3) for number in range(3000)]
    assert all(800 < first.count(index) < 1200 for index in range(3))


@given(text=st.text(max_size=40))
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except ValueError:
        return
    assert endpoint.host
    assert 0 < endpoint.port <= 65535


def test_bodies_of_a_fleet_are_spread_and_those_of_a_host_are_not() -> None:
    shared, own = "a" * 64, "b" * 64
    entries = {
        "/hids/agent/config/@all/plugin/process/rules": Entry(f"id:{shared}".encode(), 1),
        "/hids/agent/config/web1/plugin/process/settings": Entry(f"id:{own}".encode(), 1),
    }
    times = []
    for number in range(200):
        wanted = Wanted(f"host{number}", "/hids", 60.0)
        wanted.ask([shared, own], entries, 1000.0)
        assert wanted.due(1000.0) == own
        assert wanted.done(own)
        times.append(wanted.next_at() - 1000.0)
    assert 0 <= min(times) < 10
    assert 50 < max(times) < 60


def test_a_body_that_is_absent_waits_until_the_watch_is_new() -> None:
    wanted = Wanted("h", "/hids")
    wanted.ask(["a" * 64], {}, 1.0)
    wanted.absent("a" * 64)
    assert wanted.due(100.0) is None
    wanted.again(200.0)
    assert wanted.due(200.0) == "a" * 64
    wanted.ask([], {}, 300.0)
    assert not wanted.done("a" * 64)


def test_the_servers_words_decide_over_its_codes() -> None:
    assert kind_of("UNAVAILABLE", "etcdserver: no leader") == "no_leader"
    assert kind_of("UNAVAILABLE", "etcdserver: request timed out, possibly due to connection lost") == "timeout"
    assert kind_of("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user ID or password") == "auth"
    assert kind_of("", "rpc error: code = PermissionDenied desc = etcdserver: permission denied") == "permission"
    assert kind_of("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded") == "no_space"
    assert kind_of("WHAT", "ever") == "other"
