"""The metrics endpoint on real sockets: what it answers, and what nobody can make it do."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from garrison.supervisor.metrics.address import Address
from garrison.supervisor.metrics.endpoint import EndpointError, EndpointLimits, MetricsEndpoint

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"# HELP x y\n# TYPE x gauge\nx 1\n"
ANYWHERE = Address(socket.AF_INET, "127.0.0.1", 0)
QUICK = EndpointLimits(request_seconds=0.3, answer_seconds=0.5, linger_seconds=0.3, rate=1000, burst=1000)
SECONDS = 60.0

Test = Callable[[MetricsEndpoint, Counter[str]], Awaitable[None]]


async def body() -> bytes:
    return BODY


def serve(
    test: Test,
    *,
    address: Address = ANYWHERE,
    give: Callable[[], Awaitable[bytes]] = body,
    limits: EndpointLimits = QUICK,
    group: int | None = None,
) -> Counter[str]:
    requests: Counter[str] = Counter()

    async def run() -> None:
        endpoint = MetricsEndpoint(address, give, requests, group=group, limits=limits)
        endpoint.open()
        try:
            async with asyncio.timeout(SECONDS):
                await test(endpoint, requests)
        finally:
            await endpoint.close()
        assert endpoint.connections == 0

    asyncio.run(run())
    return requests


async def connect(endpoint: MetricsEndpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.address.family == socket.AF_UNIX:
        return await asyncio.open_unix_connection(endpoint.address.host)
    return await asyncio.open_connection(endpoint.address.host, endpoint.address.port)


async def ask(endpoint: MetricsEndpoint, data: bytes = GET) -> bytes:
    reader, writer = await connect(endpoint)
    try:
        writer.write(data)
        return await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_a_scrape_is_answered_and_the_connection_closed() -> None:
    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        head, _, text = (await ask(endpoint)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
        assert f"Content-Length: {len(BODY)}".encode() in head
        assert text == BODY

    assert serve(test)["ok"] == 1


@pytest.mark.parametrize("family", [socket.AF_INET6, socket.AF_UNIX])
def test_ipv6_and_unix_sockets_work_too(family: socket.AddressFamily, tmp_path: Path) -> None:
    if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    path = str(tmp_path / "m.sock")
    address = Address(family, path) if family == socket.AF_UNIX else Address(family, "::1", 0)

    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        assert (await ask(endpoint)).endswith(BODY)
        if family == socket.AF_UNIX:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    serve(test, address=address)
    assert not os.path.exists(path)


def test_a_unix_socket_can_be_given_to_a_group(tmp_path: Path) -> None:
    path = str(tmp_path / "m.sock")

    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getgid())

    serve(test, address=Address(socket.AF_UNIX, path), group=os.getgid())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"\x16\x03\x01\x02\x00\n\n", 400),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * 20_000, 431),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200_000 + b"\r\n", 431),
    ],
)
def test_anything_else_is_refused_and_counted(data: bytes, status: int) -> None:
    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        with suppress(ConnectionError):  # it does not read a megabyte of headers to the end
            assert (await ask(endpoint, data)).startswith(b"HTTP/1.1 %d " % status)

    assert serve(test)["refused"] == 1


def test_a_request_that_comes_by_the_byte_ends_in_time() -> None:
    async def test(endpoint: MetricsEndpoint, requests: Counter[str]) -> None:
        reader, writer = await connect(endpoint)
        began = time.monotonic()
        with suppress(ConnectionError):
            while not requests["timeout"]:
                writer.write(b"G")
                await writer.drain()
                await asyncio.sleep(0.05)
        assert time.monotonic() - began < 30
        with suppress(ConnectionError):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        await until(lambda: endpoint.connections == 0)
        writer.close()

    assert serve(test)["timeout"] == 1


def test_slow_clients_hold_places_for_a_while_and_nothing_else() -> None:
    """Twelve that say nothing: eight are served at a time, and a scrape behind them is answered after all."""

    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        others = [await connect(endpoint) for _ in range(12)]
        most = 0

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, endpoint.connections)
                await asyncio.sleep(0.01)

        looking = asyncio.create_task(look())
        assert (await ask(endpoint)).endswith(BODY)
        looking.cancel()
        assert most == QUICK.connections
        for _, writer in others:
            writer.close()

    assert serve(test)["ok"] == 1


def test_a_client_that_does_not_read_is_cut_off_and_holds_nobody_up() -> None:
    large = b"x" * (32 * 1024 * 1024)

    async def give() -> bytes:
        return large

    async def test(endpoint: MetricsEndpoint, requests: Counter[str]) -> None:
        _, writer = await connect(endpoint)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET)
        late = 0.0
        while not requests["timeout"]:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            late = max(late, time.monotonic() - began)
        assert late < 5  # the loop went on turning
        await until(lambda: endpoint.connections == 0)
        writer.transport.abort()

    assert serve(test, give=give)["timeout"] == 1


def test_a_client_that_leaves_is_no_error_for_the_next_one() -> None:
    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        for data in (b"", b"GET", GET):
            _, writer = await connect(endpoint)
            writer.write(data)
            writer.transport.abort()
        assert (await ask(endpoint)).endswith(BODY)
        await until(lambda: endpoint.connections == 0)

    assert serve(test)["ok"] >= 1


def test_a_collection_that_fails_is_a_500_and_the_endpoint_lives_on() -> None:
    answers = [b"", BODY]

    async def give() -> bytes:
        answer = answers.pop(0)
        if not answer:
            raise RuntimeError("broken")
        return answer

    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        assert (await ask(endpoint)).startswith(b"HTTP/1.1 500 ")
        assert (await ask(endpoint)).endswith(BODY)

    assert serve(test, give=give) == {"error": 1, "ok": 1}


def test_a_thousand_scrapes_are_all_answered() -> None:
    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        gate = asyncio.Semaphore(50)

        async def one() -> bool:
            async with gate:
                return (await ask(endpoint)).endswith(BODY)

        assert all(await asyncio.gather(*(one() for _ in range(1000))))

    assert serve(test, limits=EndpointLimits(rate=100_000, burst=1000))["ok"] == 1000


def test_connections_are_taken_at_a_limited_rate() -> None:
    limits = EndpointLimits(rate=20, burst=5)

    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        began = time.monotonic()
        for _ in range(15):
            await ask(endpoint)
        # Five at once, a debt of one, then one each 50 ms: never faster, however fast they are asked for.
        assert time.monotonic() - began >= 0.4

    assert serve(test, limits=limits)["ok"] == 15


def test_a_place_that_is_taken_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        with pytest.raises(EndpointError, match=r"\[metrics\] listen"):
            MetricsEndpoint(endpoint.address, body, Counter()).open()

    serve(test)
    (tmp_path / "file").write_text("")
    with pytest.raises(EndpointError, match="no socket"):
        serve(test, address=Address(socket.AF_UNIX, str(tmp_path / "file")))
    with pytest.raises(EndpointError, match="cannot listen"):
        serve(test, address=Address(socket.AF_INET, "192.0.2.1", 1))


def test_it_can_be_opened_again_at_once_after_a_scrape() -> None:
    ports: list[int] = []

    async def test(endpoint: MetricsEndpoint, _: Counter[str]) -> None:
        ports.append(endpoint.address.port)
        await ask(endpoint)

    serve(test)
    serve(test, address=Address(socket.AF_INET, "127.0.0.1", ports[0]))


def test_out_of_descriptors_it_waits_and_goes_on(tmp_path: Path) -> None:
    import resource

    async def test(endpoint: MetricsEndpoint, requests: Counter[str]) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket()
        client.setblocking(False)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, before[1]))
            await asyncio.get_running_loop().sock_connect(client, endpoint.address[1:])
            await asyncio.get_running_loop().sock_sendall(client, GET)
            await until(lambda: requests["error"] > 0)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert await asyncio.get_running_loop().sock_recv(client, 100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            client.close()

    serve(test)
