"""``[store.etcd]``: what is taken, and what is refused with which words."""

from __future__ import annotations

import pytest

from garrison.supervisor.settings import ConfigurationError, Settings
from garrison.supervisor.settings.load import loads
from garrison.supervisor.settings.places import Surroundings

HERE = Surroundings(root=True, hostname="web-17", home="/root", environ={})


def read(text: str) -> Settings:
    return loads(f'[store]\nbackend = "etcd"\n[store.etcd]\n{text}'.encode(), "f", HERE)


def problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_a_whole_table_is_taken() -> None:
    etcd = read(
        'endpoints = ["10.0.0.1", "https://etcd2.example.com:2379", "[2001:db8::1]:2379"]\n'
        'ca_cert = "/ca"\ncert = "/c"\nkey = "/k"\nusername = "u"\npassword_file = "/p"\nlease_ttl = 30'
    ).store.etcd
    assert etcd.endpoints[1] == "https://etcd2.example.com:2379"
    assert etcd.lease_ttl == 30


def test_endpoints_are_needed() -> None:
    assert "List the members" in problems("")["store.etcd.endpoints"]


def test_the_directory_store_needs_none() -> None:
    assert loads(b"", "", HERE).store.etcd.endpoints == ()


@pytest.mark.parametrize(
    "text", ["host:0", "host:65536", "host:x", "::1", "ftp://h", "a b", "[::1", "10.0.0.256", "-x"]
)
def test_what_is_no_endpoint_is_refused_with_its_place(text: str) -> None:
    assert "store.etcd.endpoints[1]" in problems(f'endpoints = ["good", "{text}"]')


@pytest.mark.parametrize(
    ("text", "key", "other"),
    [
        ('ca_cert = "/ca"\ncert = "/c"', "cert", "needs key"),
        ('ca_cert = "/ca"\nkey = "/k"', "key", "needs cert"),
        ('cert = "/c"\nkey = "/k"', "cert", "needs ca_cert"),
        ('username = "u"', "username", "needs password_file"),
        ('password_file = "/p"', "password_file", "needs username"),
    ],
)
def test_what_belongs_together_is_asked_for_together(text: str, key: str, other: str) -> None:
    assert other in problems(f'endpoints = ["h"]\n{text}')[f"store.etcd.{key}"]


def test_schemes_must_agree_with_the_use_of_tls() -> None:
    assert "ca_cert" in problems('endpoints = ["https://h"]')["store.etcd.endpoints[0]"]
    assert "https://" in problems('endpoints = ["http://h"]\nca_cert = "/ca"')["store.etcd.endpoints[0]"]


@pytest.mark.parametrize("ttl", ["9", "3601", "1.5", '"x"'])
def test_the_lease_has_a_range(ttl: str) -> None:
    assert "store.etcd.lease_ttl" in problems(f'endpoints = ["h"]\nlease_ttl = {ttl}')


def test_an_endpoint_twice_is_refused() -> None:
    assert "twice" in problems('endpoints = ["h", "h"]')["store.etcd.endpoints"]
