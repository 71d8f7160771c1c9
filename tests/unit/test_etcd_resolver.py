"""Names to addresses: seldom asked, never waited for long, and kept for when DNS is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from garrison.supervisor.stores.etcd import resolver
from garrison.supervisor.stores.etcd.resolver import FRESH_SECONDS, UNKNOWN_SECONDS, Resolver
from tests.e2e._agent import until

NAME = "etcd.fleet.test"


class Dns:
    """Answers from a table, and counts."""

    def __init__(self, *ips: str) -> None:
        self.ips = ips
        self.asked = 0

    def __call__(self, name: str) -> tuple[str, ...]:
        assert name == NAME
        self.asked += 1
        if not self.ips:
            raise OSError("the name server is away")
        return self.ips


def made(path: Path | str = "", lookup: Callable[[str], tuple[str, ...]] | None = None) -> Resolver:
    return Resolver(str(path), [NAME], lookup or Dns())


def test_a_name_is_asked_for_once_a_minute_at_most() -> None:
    dns = Dns("10.0.0.1")
    names = made(lookup=dns)
    for now in (0.0, 1.0, FRESH_SECONDS - 1):
        assert names.addresses(NAME, now) == ("10.0.0.1",)
    assert dns.asked == 1
    dns.ips = ("10.0.0.2",)
    assert names.addresses(NAME, FRESH_SECONDS) == ("10.0.0.2",)


def test_an_unknown_name_is_asked_for_more_often_and_says_why() -> None:
    dns = Dns()
    names = made(lookup=dns)
    assert names.addresses(NAME, 0.0) == ()
    assert "away" in names.error(NAME)
    assert names.addresses(NAME, UNKNOWN_SECONDS - 1) == ()
    assert dns.asked == 1
    dns.ips = ("10.0.0.1",)
    assert names.addresses(NAME, UNKNOWN_SECONDS) == ("10.0.0.1",)
    assert names.error(NAME) == ""


def test_addresses_are_kept_while_dns_is_away() -> None:
    dns = Dns("10.0.0.1")
    names = made(lookup=dns)
    names.addresses(NAME, 0.0)
    dns.ips = ()
    assert names.addresses(NAME, FRESH_SECONDS) == ("10.0.0.1",)
    assert "away" in names.error(NAME)


def test_addresses_outlive_the_process_although_the_folder_was_not_there_yet(tmp_path: Path) -> None:
    """Found by a start of a new host: the first lookup is older than the state directory."""
    path = tmp_path / "state" / "addresses.json"
    made(path, Dns("10.0.0.1")).addresses(NAME, 0.0)
    until(path.exists, "the addresses are kept")
    assert made(path, Dns()).addresses(NAME, 0.0) == ("10.0.0.1",)


def test_addresses_that_could_not_be_kept_are_kept_later(tmp_path: Path) -> None:
    path = tmp_path / "state" / "addresses.json"
    path.parent.write_text("in the way")
    names = made(path, Dns("10.0.0.1"))
    assert names.addresses(NAME, 0.0) == ("10.0.0.1",)
    path.parent.unlink()
    assert names.addresses(NAME, FRESH_SECONDS) == ("10.0.0.1",)
    until(path.exists, "the addresses are kept")
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_torn_file_is_done_without(tmp_path: Path) -> None:
    path = tmp_path / "addresses.json"
    path.write_text('{"format":1,')
    assert made(path, Dns("10.0.0.1")).addresses(NAME, 0.0) == ("10.0.0.1",)


def test_a_silent_name_server_holds_nobody_up() -> None:
    answer = threading.Event()

    def lookup(_: str) -> tuple[str, ...]:
        answer.wait(60)
        return ("10.0.0.2",)

    names = made(lookup=lookup)
    try:
        assert names.addresses(NAME, 0.0) == ()
        assert f"within {resolver.WAIT_SECONDS:g} s" in names.error(NAME)
        assert names.addresses(NAME, 1000.0) == ()
        assert sum(thread.name == "garrison-resolve" for thread in threading.enumerate()) == 1
    finally:
        answer.set()
    until(lambda: names.addresses(NAME, 1000.0), "the answer came late, and counts")


def test_closing_lets_nobody_wait() -> None:
    answer = threading.Event()

    def lookup(_: str) -> tuple[str, ...]:
        answer.wait(60)
        return ()

    names = made(lookup=lookup)
    names.close()
    assert names.addresses(NAME, 0.0) == ()
    answer.set()
