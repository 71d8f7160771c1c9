"""The thread that receives what a watch stream brings."""

from __future__ import annotations

import threading
from collections.abc import Callable

from garrison.supervisor.keys import shown
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.results import WatchNews
from garrison.supervisor.stores.etcd.stream import WatchStream


class Receiver:
    """Hands every message of a stream to `take` in a thread of its own, until the stream ends.

    Args:
        stream: The stream; cancelled by `stop`.
        take: Called with this receiver and each message.
        fail: Called with this receiver and why the stream ended, unless `stop` ended it.

    Raises:
        EtcdError: No thread can be started.
    """

    def __init__(
        self,
        stream: WatchStream,
        take: Callable[[Receiver, WatchNews], None],
        fail: Callable[[Receiver, EtcdError], None],
    ) -> None:
        self.stream = stream
        self._take = take
        self._fail = fail
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="garrison-watch", daemon=True)

    def start(self) -> None:
        """Begin.

        Raises:
            EtcdError: The system gives no thread.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            self.stream.cancel()
            raise EtcdError("other", f"no thread can be started: {error}") from error

    def stop(self, seconds: float) -> bool:
        """End the stream and the thread; False: it was not over in time (a listener that hangs)."""
        self._stopped = True
        self.stream.cancel()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for news in self.stream:
                self._take(self, news)
            if not self._stopped:
                self._fail(self, EtcdError("closed", "the connection was closed", self.stream.endpoint))
        except EtcdError as error:
            self._fail(self, error)
        except Exception as error:  # noqa: BLE001  whatever it is, a new session must go on obeying the killswitch
            self._fail(self, EtcdError("other", f"what the watch brought could not be acted on: {shown(repr(error))}"))
