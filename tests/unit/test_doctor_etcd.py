"""The doctor's judgement of an etcd store: versions, ends of certificates, rights, alarms."""

from __future__ import annotations

import contextlib
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor import doctor_etcd
from garrison.supervisor.presence.document import Registration
from garrison.supervisor.stores.etcd.endpoints import parse_endpoint
from garrison.supervisor.stores.etcd.errors import EtcdError, Kind
from garrison.supervisor.stores.etcd.library import rpc
from garrison.supervisor.stores.etcd.probe import Look, Rights, alarms_of
from garrison.supervisor.stores.etcd.results import Header, MemberStatus
from garrison.supervisor.stores.etcd.validity import ends_at


@pytest.mark.parametrize(
    ("version", "upgrade"),
    [
        ("3.3.27", "3.4 or later"),
        ("3.4.22", "3.4.23 or later"),
        ("3.4.23", ""),
        ("3.5.6", "3.5.7 or later"),
        ("3.5.7", ""),
        ("3.6.0", ""),
        ("3.5.21-rc.1", ""),
        ("4.0.0", ""),
        ("not a version", ""),
    ],
)
def test_versions_that_lose_data_or_crash_are_named(version: str, upgrade: str) -> None:
    found = doctor_etcd.judge_version(version)
    assert upgrade in found
    assert bool(found) == bool(upgrade)


def look(error: EtcdError | None = None, cluster: int = 1, **more: object) -> Look:
    header = Header(cluster, 2, 3, 4)
    status = None if error else MemberStatus(header, "3.5.21", 2, 1)
    return Look(parse_endpoint("10.0.0.1"), status=status, error=error, **more)  # type: ignore[arg-type]


def test_members_of_two_clusters_are_found() -> None:
    found = list(doctor_etcd.members([look(), look(cluster=9)]))
    assert [one.status for one in found] == ["ok", "ok", "fail"]
    assert "different clusters" in found[-1].detail


def test_one_member_that_is_away_is_a_warning_and_all_of_them_a_failure() -> None:
    away = look(EtcdError("timeout", "connecting: Deadline Exceeded"))
    assert [one.status for one in doctor_etcd.members([look(), away])] == ["ok", "warn"]
    assert [one.status for one in doctor_etcd.members([away])] == ["fail", "fail"]


def test_a_wrong_password_is_said_once_for_all_members() -> None:
    error = EtcdError("auth", "logging in as x: authentication failed; correct it")
    found = list(doctor_etcd.members([look(error), look(error)]))
    assert [one.name for one in found] == ["etcd login", "etcd"]


def test_every_alarm_is_a_failure() -> None:
    found = list(doctor_etcd.members([look(alarms=("CORRUPT", "NOSPACE"))]))
    assert [one.status for one in found] == ["ok", "fail", "fail"]


@pytest.mark.parametrize("kind", ["unavailable", "timeout", "no_leader", "permission", "auth", "credentials", "other"])
def test_every_error_has_a_remedy(kind: Kind) -> None:
    assert doctor_etcd.remedy_of(EtcdError(kind, "anything"))


def test_alarms_come_from_a_field_that_the_stubs_do_not_know() -> None:
    message = rpc.StatusResponse.FromString(
        b"\x1a\x053.5.1"
        + b"".join(
            b"\x42" + bytes((len(text),)) + text
            for text in (b"memberID:7 alarm:NOSPACE ", b"etcdserver: no leader", b"memberID:8 alarm:NOSPACE ")
        )
    )
    assert alarms_of(message) == ("NOSPACE",)
    assert alarms_of(rpc.StatusResponse(version="3.3.0")) == ()


def states(rights: Rights) -> list[str]:
    return [finding.status for finding in doctor_etcd.judge_rights(rights, "web1")]


def test_rights_that_lack_or_that_are_too_many_are_found() -> None:
    assert states(Rights()) == ["ok", "ok"]
    assert states(Rights(unread=("/hids/agent/master/web1",))) == ["fail"]
    assert states(Rights(unwritten=("/hids/agent/status/web1",))) == ["warn", "ok"]
    assert states(Rights(too_much=True)) == ["warn", "ok"]
    assert states(Rights(error=EtcdError("no_space", "full"))) == ["warn"]
    assert states(Rights(error=EtcdError("timeout", "late"))) == ["fail"]


def test_a_registration_of_another_machine_is_found() -> None:
    other = Registration(machine_id="0" * 32, ip_addresses=("10.0.0.9",))
    found = list(doctor_etcd.judge_rights(Rights(registered=True, registration=other), "web1"))
    assert found[-1].status == "warn"
    assert "10.0.0.9" in found[-1].detail
    assert states(Rights(registered=True)) == ["ok", "warn"]


def certificate(end: dt.datetime) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1 << 150)
        .not_valid_before(dt.datetime(1980, 1, 1, tzinfo=dt.UTC))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("year", [1999, 2026, 2049, 2050, 9999])
def test_the_end_of_a_certificate_is_read(year: int) -> None:
    end = dt.datetime(year, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    assert ends_at(b"some text\n" + certificate(end) + certificate(dt.datetime(2030, 1, 1, tzinfo=dt.UTC))) == end


WHOLE = certificate(dt.datetime(2030, 1, 1, tzinfo=dt.UTC))


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=len(WHOLE)))
def test_what_is_no_certificate_is_an_error_and_no_crash(noise: bytes, at: int) -> None:
    for data in (noise, WHOLE[:at], WHOLE[:at] + noise + WHOLE[at:]):
        with contextlib.suppress(ValueError):
            ends_at(data)
