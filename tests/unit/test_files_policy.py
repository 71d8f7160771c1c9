"""The files module's policy: what is tracked, what differs, what settles, how fast it may go."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.workers.files import reference, rules
from garrison.workers.files.disk import is_network, parse_mounts
from garrison.workers.files.entry import DIRECTORY, FILE, LINK, Entry, action_for, differences
from garrison.workers.files.events import iso
from garrison.workers.files.pace import BURST_SECONDS, Pace
from garrison.workers.files.pending import Pending
from garrison.workers.files.roots import parse_homes, targets, wanted
from garrison.workers.files.settings import Config
from garrison.workers.files.targets import Map, Target, below, literal_prefix

ENTRY = Entry(FILE, 10, 0, 0, 0o644, 100, 100, 7, b"a" * 32)


def target(path: str, *, alert: bool = False, filtered: bool = False) -> Target:
    return Target(path, path, rules.CRON if alert else None, filtered)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/etc/cron.d", "/etc/cron.d"),
        ("/etc/cron.d/a/b", "/etc/cron.d"),
        ("/etc/cron.dx", None),
        ("/home/bob/.ssh/authorized_keys", "/home/*/.ssh/authorized_keys"),
        ("/home/bob/.ssh/known_hosts", None),
        ("/home/bob/x/.ssh/authorized_keys", None),
        ("/etc/rc3.d/S1", "/etc/rc?.d"),
        ("/etc/rc.d/S1", None),
    ],
)
def test_which_target_covers_a_path(path: str, found: str | None) -> None:
    places = ("/etc/cron.d", "/home/*/.ssh/authorized_keys", "/etc/rc?.d")
    state = Map([target(place) for place in places]).state(path)
    covering = state.target if state is not None else None
    assert (covering.path if covering is not None else None) == found


def test_directories_on_the_way_are_known_and_others_are_not() -> None:
    places = Map([target("/home/*/.ssh/authorized_keys", alert=True)])
    for path in ("/home", "/home/bob", "/home/bob/.ssh"):
        state = places.state(path)
        assert state is not None
        assert state.target is None
        assert state.alert
    assert places.state("/etc") is None
    assert places.state("/home/bob/Documents") is None


def test_an_alerts_place_wins_over_an_events_place_at_any_depth() -> None:
    places = Map([target("/etc"), target("/etc/cron.d", alert=True), target("/etc/cron.d/x")])
    for path, expected in (("/etc/hosts", "/etc"), ("/etc/cron.d/x", "/etc/cron.d"), ("/etc/cron.d", "/etc/cron.d")):
        state = places.state(path)
        assert state is not None
        assert state.target is not None
        assert state.target.path == expected


def test_excluded_directories_are_left_out_with_all_below() -> None:
    places = Map([target("/srv")], exclude=("cache", "/srv/*/logs", "*.swp"))
    for path in ("/srv/cache/x", "/srv/a/cache", "/srv/a/logs/x", "/srv/a/.x.swp"):
        assert places.state(path) is None
    assert places.state("/srv/a/logs2/x") is not None


def test_include_is_for_files_of_filtered_targets() -> None:
    places = Map([target("/srv", filtered=True), target("/opt")], include=("*.php",))
    for path, kind, expected in (
        ("/srv/a.php", FILE, True),
        ("/srv/a.txt", FILE, False),
        ("/srv/dir", DIRECTORY, True),
        ("/opt/a.txt", FILE, True),
    ):
        state = places.state(path)
        assert state is not None
        assert places.wanted(state, path, path.rpartition("/")[2], kind) is expected


def test_only_a_link_in_the_place_of_a_directory_on_the_way_is_tracked() -> None:
    places = Map([target("/home/*/.ssh/authorized_keys")])
    state = places.state("/home/bob")
    assert state is not None
    assert places.wanted(state, "/home/bob", "bob", LINK)
    assert not places.wanted(state, "/home/bob", "bob", FILE)
    assert not places.wanted(state, "/home/bob", "bob", DIRECTORY)


@given(st.lists(st.sampled_from(["a", "b", "c", "*", "?", "[ab]"]), min_size=1, max_size=5), st.data())
def test_all_below_a_target_is_covered(names: list[str], data: st.DataObject) -> None:
    places = Map([target("/" + "/".join(names))])
    path = ""
    for name in names:
        path += "/" + (data.draw(st.sampled_from(["a", "b"])) if name in ("*", "?", "[ab]") else name)
        state = places.state(path)
        assert state is not None
    assert state is not None
    assert state.target is not None
    deeper = places.state(path + "/x/y/z")
    assert deeper is not None
    assert deeper.depth == 3


def test_patterns_are_split_in_front_of_the_first_glob() -> None:
    assert literal_prefix("/a/b") == ("/a/b", "")
    assert literal_prefix("/a/b*/c") == ("/a", "b*/c")
    assert literal_prefix("/*") == ("/", "*")
    assert below("/a/b", "/a")
    assert below("/a", "/a")
    assert not below("/ab", "/a")
    assert below("/ab", "/")


@pytest.mark.parametrize(
    ("change", "changed", "action"),
    [
        ({}, (), None),
        ({"ctime_ns": 5}, (), None),
        ({"mtime_ns": 5}, ("mtime",), None),
        ({"inode": 5}, ("inode",), None),
        ({"sha256": b"b" * 32}, ("sha256",), "modified"),
        ({"size": 5, "sha256": b"b" * 32}, ("size", "sha256"), "modified"),
        ({"mode": 0o755}, ("mode",), "attributes"),
        ({"uid": 5, "gid": 6}, ("owner", "group"), "attributes"),
        ({"sha256": None}, (), None),
        ({"sha256": None, "mtime_ns": 5}, ("content", "mtime"), "modified"),
        ({"kind": LINK, "link": b"x", "sha256": None}, ("type", "target"), "modified"),
    ],
)
def test_what_a_difference_amounts_to(change: dict[str, object], changed: tuple[str, ...], action: str | None) -> None:
    new = ENTRY._replace(**change)  # type: ignore[arg-type]
    assert differences(ENTRY, new) == changed
    assert action_for(changed, times=False) == action
    assert action_for(changed, times=True) == (action or ("attributes" if changed else None))


def test_a_change_settles_and_a_busy_file_is_judged_all_the_same() -> None:
    pending = Pending(1.0, 5.0)
    pending.touch("/a", 0.0)
    assert pending.take(0.9) is None
    pending.touch("/a", 0.9)
    assert pending.take(1.5) is None
    change = pending.take(1.9)
    assert change is not None
    assert change.path == "/a"
    assert len(pending) == 0
    for tenth in range(51):
        pending.touch("/b", 10 + tenth / 10)
    assert pending.take(14.9) is None
    assert pending.take(15.0) is not None


def test_a_rename_takes_the_source_along_through_a_chain() -> None:
    pending = Pending(1.0, 5.0)
    pending.touch("/a", 0.0)
    pending.moved("/a", "/b", 0.0)
    pending.moved("/b", "/c", 0.1)
    assert "/a" not in pending
    assert "/b" not in pending
    change = pending.take(2.0)
    assert change is not None
    assert (change.path, change.moved_from) == ("/c", "/a")
    assert pending.take(9.0) is None
    assert pending.next_due() is None


Touches = st.lists(
    st.tuples(st.sampled_from("abcd"), st.floats(0, 1), st.sampled_from(["touch", "moved", "take"])), max_size=60
)


@given(Touches)
def test_nothing_that_was_touched_is_forgotten(steps: list[tuple[str, float, str]]) -> None:
    pending = Pending(0.5, 2.0, 3)
    waiting: set[str] = set()
    now = 0.0
    for name, wait, what in steps:
        now += wait
        if what == "take":
            change = pending.take(now)
            if change is not None:
                waiting.discard(change.path)
        elif what == "touch":
            if pending.touch(name, now) is not None:
                waiting.add(name)
        elif pending.moved("x" + name, name, now) is not None:
            waiting.add(name)
        assert len(pending) == len(waiting) <= 3
        due = pending.next_due()
        assert (due is None) == (not waiting)
        assert due is None or due <= now + 2.0
    taken = set()
    while (change := pending.take(now + 10)) is not None:
        taken.add(change.path)
    assert taken == waiting


@given(st.lists(st.tuples(st.floats(0.0001, 0.01), st.floats(0, 0.5)), max_size=200))
def test_cpu_stays_within_its_share_and_the_burst(uses: list[tuple[float, float]]) -> None:
    pace = Pace(4.0, 1e9, 1e9)
    now, spent = 100.0, 0.0
    for amount, idle in uses:
        now += max(0.0, pace.delay(now)) + idle
        pace.cpu(amount, now)
        spent += amount
        assert spent <= (now - 100.0 + BURST_SECONDS) * 0.04 + 0.01 + 1e-9


def test_the_workers_budget_bounds_what_the_settings_allow() -> None:
    free, bounded = Pace(40.0, 1e9, 1e9), Pace(40.0, 1e9, 1e9)
    bounded.budget(4.0)
    for pace in (free, bounded):
        pace.cpu(2.0, 0.0)
    assert bounded.delay(0.0) + BURST_SECONDS == pytest.approx(10 * (free.delay(0.0) + BURST_SECONDS))


def test_degraded_takes_twice_the_pause() -> None:
    usual, degraded = Pace(4.0, 1000.0, 10.0), Pace(4.0, 1000.0, 10.0)
    degraded.degraded = True
    for pace in (usual, degraded):
        pace.read(100_000, 0.0)
    assert degraded.delay(0.0) + BURST_SECONDS == pytest.approx(2 * (usual.delay(0.0) + BURST_SECONDS))


def test_homes_are_each_taken_once_and_no_place_that_is_none() -> None:
    data = (
        b"root:x:0:0:root:/root:/bin/bash\nbin:x:1:1::/bin:/sbin/nologin\nbob:x:1000:1000::/home/bob/:/bin/sh\n"
        b"eve:x:1001:1001::/home/bob:/bin/sh\nnobody:x:2:2::/nonexistent:/x\nbroken\nrel:x:3:3::home:/x\n//:x:4:4:://a:/x"
    )
    assert parse_homes(data) == (["/root", "/home/bob", "/a"], 0)
    assert parse_homes(data, 1) == (["/root"], 2)


@given(st.binary(max_size=300))
def test_any_passwd_and_mountinfo_can_be_read(data: bytes) -> None:
    homes, _ = parse_homes(data)
    assert all(home.startswith("/") for home in homes)
    parse_mounts(data)


def test_mounts_are_read_with_their_escapes() -> None:
    data = (
        b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        b"23 22 0:5 / /mnt/a\\040b rw - nfs4 server:/x rw\n24 22 0:6 /sub /srv/bind rw master:3 - ext4 /dev/sda1 rw\n"
    )
    assert parse_mounts(data) == {"/": "ext4", "/mnt/a b": "nfs4", "/srv/bind": "ext4"}
    assert is_network("nfs4")
    assert is_network("fuse.sshfs")
    assert not is_network("ext4")


def test_presets_can_be_left_out_and_every_place_has_a_key_of_its_own() -> None:
    assert wanted(Config(presets=())) == []
    places = wanted(Config(paths=("/x",), alert_paths=("/y",)))
    keys = [key for _, key, _, _ in places]
    assert len(keys) == len(set(keys))
    assert all(path[0] in "/~" for path, _, _, _ in places)
    assert {rule.id for _, _, rule, _ in places if rule is not None} == {rule.id for rule in rules.RULES}


def test_links_in_front_of_a_path_are_resolved_and_only_roots_at_its_end(tmp_path: Path) -> None:
    real = tmp_path.resolve() / "real"
    (real / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    (real / "end").symlink_to("inside")
    found = [t.path for t in targets(Config(presets=(), paths=(f"{tmp_path}/link/end",)), [])]
    by_root = os.lstat(real / "end").st_uid == 0
    assert found == [f"{real}/end", *([f"{real}/inside"] if by_root else [])]
    globbed = targets(Config(presets=(), paths=(f"{tmp_path}/link/*/x",)), [])
    assert [t.path for t in globbed] == [f"{real}/*/x"]


def test_times_beyond_the_calendar_are_cut() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000Z"
    assert iso(1_700_000_000_123_000_000) == "2023-11-14T22:13:20.123Z"
    assert iso(2**63 - 1).startswith("2262-")
    assert iso(2**70).startswith("9999-")
    assert iso(-1).startswith("1970-01-01")


@pytest.mark.parametrize(
    "settings",
    [
        {"cpu_percent": 0},
        {"paths": ["relative"]},
        {"presets": ["none"]},
        {"entries_max": 10**9},
        {"exclude": [""]},
        {"paths": ["/x"] * 257},
        {"unknown": 1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, Config)


def test_rules_have_ids_of_their_own_and_techniques() -> None:
    assert len({rule.id for rule in rules.RULES}) == len(rules.RULES)
    for rule in rules.RULES:
        assert rule.technique[0].startswith("T")
        assert rule.subtechnique is None or rule.subtechnique[0].startswith(rule.technique[0] + ".")


@pytest.mark.parametrize("table", [reference.settings_table, reference.rules_table])
def test_the_page_shows_the_tables_as_they_are(table: object) -> None:
    assert callable(table)
    page = Path(__file__).parents[2] / "docs" / "files-worker.md"
    assert table() in page.read_text(encoding="utf-8")
