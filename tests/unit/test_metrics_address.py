"""Where metrics may be served, and the little HTTP they speak. Pure."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.metrics import request
from garrison.supervisor.metrics.address import is_loopback, parse_address
from garrison.supervisor.settings import ConfigurationError
from garrison.supervisor.settings.load import loads
from garrison.supervisor.settings.places import Surroundings

HERE = Surroundings(root=True, hostname="web-17", home="/root", environ={})


def problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        loads(f"[metrics]\n{text}".encode(), "f", HERE)
    return {problem.key: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize("text", ["127.0.0.1:9469", "127.9.8.7:1", "[::1]:65535", "/run/garrison/metrics.sock"])
def test_loopback_and_sockets_are_taken(text: str) -> None:
    assert str(parse_address(text)) == text
    assert loads(f'[metrics]\nlisten = "{text}"'.encode(), "f", HERE).metrics.listen == text


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0:9469", "10.0.0.1:9469", "[::]:9469", "[::ffff:127.0.0.1]:9469", "[fe80::1]:1", "localhost:9469"),
        *("127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:+1", "127.0.0.1:١", ":9469", "127.1:9469"),
        *("127.0.0.1\\u0000:1", "::1:9469", "/", "/a/../b", "/run/x/", "run/x", f"/{'x' * 107}", "128.0.0.1:1"),
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    assert "metrics.listen" in problems(f'listen = "{text}"')


def test_the_refusal_says_what_to_do() -> None:
    assert "loopback only" in problems('listen = "0.0.0.0:9469"')["metrics.listen"]
    assert ".prom" in problems('textfile = "/x/garrison.txt"')["metrics.textfile"]
    assert "absolute" in problems('textfile = "garrison.prom"')["metrics.textfile"]
    assert "UNIX socket" in problems('listen = "127.0.0.1:1"\nsocket_group = "adm"')["metrics.socket_group"]
    assert "metrics.textfile_seconds" in problems("textfile_seconds = 1")


def test_metrics_are_off_by_default() -> None:
    metrics = loads(b"", "", HERE).metrics
    assert (metrics.listen, metrics.textfile) == ("", "")


@given(st.text(max_size=60))
def test_no_text_names_an_address_that_others_reach(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert address.family == socket.AF_UNIX or is_loopback(address.family, address.host)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /metrics HTTP/1.1", 200),
        ("GET /metrics HTTP/1.0", 200),
        ("GET /metrics?x=1 HTTP/1.1", 200),
        ("HEAD /metrics HTTP/1.1", 405),
        ("POST /metrics HTTP/1.1", 405),
        ("GET / HTTP/1.1", 404),
        ("GET /metrics/ HTTP/1.1", 404),
        ("GET http://x/metrics HTTP/1.1", 404),
        ("GET /metrics HTTP/2.0", 505),
        ("GET /metrics", 400),
        ("GET  /metrics HTTP/1.1", 400),
        ("", 400),
        ("\x16\x03\x01", 400),
    ],
)
def test_only_a_get_of_the_metrics_is_answered(line: str, status: int) -> None:
    assert request.judge(f"{line}\r\nHost: x\r\n\r\n".encode()) == status


@given(st.binary(max_size=200))
def test_no_request_breaks_the_judgement(data: bytes) -> None:
    status = request.judge(data)
    head = request.answer(status, b"12")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in head
