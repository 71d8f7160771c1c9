"""TCP forwarders that a test can cut, so that a server seems to vanish from the network without any privilege."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

_CHUNK = 65536


class Wires:
    """Forwarders on loopback, with a thread for each and two for each connection through them.

    A cut wire swallows: what is sent through it gets lost without any answer, as on a network that drops packets, and
    a new connection through it is taken and never answered. Healing ends the connections that have lost something, so
    that both sides begin anew.

    Args:
        source_of: Names the side that has connected, given the port it comes from; only needed to cut by source.

    Attributes:
        taken: How many connections were taken so far.
    """

    def __init__(self, source_of: Callable[[int], str] = lambda _: "") -> None:
        self._source_of = source_of
        self.taken = 0
        self._lock = threading.Lock()
        self._closed = False
        self._cut: set[str] = set()
        self._links: set[_Link] = set()
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def add(self, name: str, port: int, target: int) -> None:
        """Forward what comes to `port` to `target`, both on 127.0.0.1, until the wire `name` is cut."""
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._listeners.append(listener)
        thread = threading.Thread(target=self._accept, args=(name, listener, target), name=f"wire {name}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def cut(self, name: str) -> None:
        """Cut everything to and from `name`."""
        with self._lock:
            self._cut.add(name)

    def heal(self, name: str) -> None:
        """Let everything to and from `name` through again."""
        with self._lock:
            self._cut.discard(name)
        self.snap(name)

    def snap(self, name: str) -> None:
        """End all connections to and from `name`; new ones get through."""
        with self._lock:
            for link in self._links:
                if name in link.ends:
                    link.end()

    def close(self) -> None:
        """End all connections and threads; may be called again."""
        with self._lock:
            self._closed = True
            for listener in self._listeners:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() does not
            for link in self._links:
                link.end()
        for thread in self._threads:
            thread.join(10)
        with self._lock:
            links = list(self._links)
        for link in links:
            link.done.wait(10)
        for listener in self._listeners:
            listener.close()

    def _accept(self, name: str, listener: socket.socket, target: int) -> None:
        while True:
            try:
                near, (_, port) = listener.accept()
            except OSError:
                return
            link = _Link(name, near, target)
            with self._lock:
                self.taken += 1
                self._links.add(link)
                if self._closed:
                    link.end()
            threading.Thread(target=self._serve, args=(link, port), name=f"link {name}", daemon=True).start()

    def _serve(self, link: _Link, port: int) -> None:
        try:
            link.ends |= {self._source_of(port)}
            link.run(lambda: not self._cut.isdisjoint(link.ends))
        finally:
            with self._lock:
                self._links.discard(link)
            link.done.set()


class _Link:
    """One connection through a wire."""

    def __init__(self, name: str, near: socket.socket, target: int) -> None:
        self.ends = frozenset({name})
        self.done = threading.Event()
        self._near = near
        self._target = target
        self._far: socket.socket | None = None

    def run(self, is_cut: Callable[[], bool]) -> None:
        """Forward until an end closes; then both are closed."""
        with self._near, contextlib.suppress(OSError):
            if is_cut():
                while self._near.recv(_CHUNK):
                    pass
                return
            with socket.create_connection(("127.0.0.1", self._target), timeout=10) as far:
                far.settimeout(None)
                for side in (self._near, far):  # or each answer waits 40 ms for an acknowledgement
                    side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._far = far
                back = threading.Thread(target=self._pump, args=(far, self._near, is_cut), daemon=True)
                back.start()
                self._pump(self._near, far, is_cut)
                back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, is_cut: Callable[[], bool]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if not is_cut():
                    sink.sendall(data)
        self.end()

    def end(self) -> None:
        """Let both pumps come to their end."""
        for side in (self._near, self._far):
            if side is not None:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
