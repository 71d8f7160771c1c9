"""One watch stream with any number of watches in it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

from garrison.supervisor.stores.etcd import messages
from garrison.supervisor.stores.etcd.errors import EtcdError, describe, kind_of
from garrison.supervisor.stores.etcd.library import grpc
from garrison.supervisor.stores.etcd.results import WatchNews, prefix_end


class WatchStream:
    """See the module. One thread iterates over it; the other methods may be called from any thread.

    Args:
        endpoint: For messages.
        call: The stub's method.
        metadata: Token, and that the member must know a leader.

    Raises:
        EtcdError: The system gives no thread, or the channel is closed.
    """

    def __init__(self, endpoint: str, call: Callable[..., Any], metadata: tuple[tuple[str, str], ...]) -> None:
        self.endpoint = endpoint
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._cancelled = False
        self.ended = False
        try:
            # No timeout: what is silent for too long is found by the keepalive and by `hasleader`.
            self._answers = call(iter(self._requests.get, None), metadata=metadata)
        except grpc.RpcError as error:
            raise self._error(error) from error
        except (RuntimeError, ValueError) as error:
            raise EtcdError("other", f"watching: {error}", endpoint) from error

    def add_prefix(self, prefix: str, start_revision: int) -> None:
        """Begin a watch of all keys below a prefix that ends in ``/``, from a revision on."""
        self._requests.put(messages.watch_request(prefix, prefix_end(prefix), start_revision))

    def add_key(self, key: str, start_revision: int) -> None:
        """Begin a watch of one key, from a revision on."""
        self._requests.put(messages.watch_request(key, "", start_revision))

    def __iter__(self) -> Iterator[WatchNews]:
        """Yield what comes, for as long as the stream lasts; ends without an exception after `cancel`.

        Raises:
            EtcdError: The stream has failed.
        """
        try:
            for answer in self._answers:
                yield messages.watch_news(answer)
            if not self._cancelled:
                raise EtcdError("unavailable", "watching: the server ended the stream", self.endpoint)
        except grpc.RpcError as error:
            if not self._cancelled:
                raise self._error(error) from error
        finally:
            self._end()
            self.ended = True

    def cancel(self) -> None:
        """End the stream."""
        self._cancelled = True
        self._end()

    def _end(self) -> None:
        self._requests.put(None)  # ends gRPC's thread that waits for requests
        self._answers.cancel()

    def _error(self, error: Any) -> EtcdError:
        code, detail = error.code().name, error.details() or ""
        kind = kind_of(code, detail)
        return EtcdError(kind, describe("watching", kind, code, detail), self.endpoint)
