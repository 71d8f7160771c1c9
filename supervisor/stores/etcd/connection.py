"""One client on one endpoint. Every call has a time limit, a typed answer and one kind of exception.

A connection is used up by its first failure of kind ``unavailable`` as far as its owner is concerned: it is closed
and another one is made. All methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from garrison.supervisor.stores.etcd import messages
from garrison.supervisor.stores.etcd.credentials import Files, read_password, read_tls
from garrison.supervisor.stores.etcd.endpoints import Address, Endpoint
from garrison.supervisor.stores.etcd.errors import EtcdError, describe, kind_of, needs_new_token
from garrison.supervisor.stores.etcd.library import etcd3, grpc, rpc
from garrison.supervisor.stores.etcd.results import (
    Compare,
    Delete,
    Grant,
    Header,
    KeyValue,
    MemberStatus,
    Op,
    Page,
    Put,
    Range,
    TxnResult,
    prefix_end,
)
from garrison.supervisor.stores.etcd.stream import WatchStream

DIAL_SECONDS = 5.0
CALL_SECONDS = 10.0
KEEPALIVE_SECONDS = 10
KEEPALIVE_TIMEOUT_SECONDS = 5
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Largest answer that is taken; etcd allows a request of 1.5 MiB by default, so that a single value always fits."""

PAGE_KEYS = 500
"""Keys in one page of `Connection.pages`."""

_LINEARIZABLE = (("hasleader", "true"),)
"""A member that knows no leader refuses a call with this at once, instead of holding it or staying silent."""

T = TypeVar("T")


class Access(NamedTuple):
    """How to connect: files and names only, so that each connection reads what the files hold then.

    Attributes:
        tls: Whether to use TLS.
        files: CA, certificate, key and password.
        username: Empty: no login by password (a certificate's common name may be one).
        dial_seconds: Limit for the first answer.
        call_seconds: Limit for each call.
    """

    tls: bool = False
    files: Files = Files()
    username: str = ""
    dial_seconds: float = DIAL_SECONDS
    call_seconds: float = CALL_SECONDS


class Connection:
    """See the module. `open` first, `close` at the end, whatever happened in between.

    Args:
        address: Of the endpoint.
        access: How to connect.
    """

    def __init__(self, address: Address, access: Access | None = None) -> None:
        self.address = address
        self.endpoint = str(address)
        self._access = access or Access()
        self._lock = threading.Lock()
        self._login = threading.Lock()
        self._closed = False
        self._token = ""
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}
        self._streams: set[WatchStream] = set()
        self.logins = 0

    def open(self) -> MemberStatus:
        """Dial, log in, and return what the member says of itself.

        Raises:
            EtcdError: It does not work; call `close` all the same.
        """
        channel = self._make_channel()
        with self._lock:
            if self._closed:
                channel.close()
                raise self._closed_error()
            self._channel = channel
        status = self._status()
        if self._access.username:
            self._authenticate("")
        return status

    def close(self) -> None:
        """End all that is under way, in whichever thread; calls that wait fail with kind ``closed``."""
        with self._lock:
            self._closed = True
            channel, self._channel = self._channel, None
            streams, self._streams = self._streams, set()
        for stream in streams:
            stream.cancel()
        if channel is not None:
            channel.close()

    @property
    def closed(self) -> bool:
        """Tell whether `close` was called."""
        return self._closed

    # -- keys ---------------------------------------------------------------------------------------------

    def get(self, key: str, *, serializable: bool = False) -> tuple[KeyValue | None, Header]:
        """Return a key, or None where it is not there.

        Raises:
            EtcdError: It could not be read.
        """
        page = self.range(Range(key, serializable=serializable))
        return (page.items[0] if page.items else None), page.header

    def range(self, wanted: Range) -> Page:
        """Read what `wanted` says.

        Raises:
            EtcdError: It could not be read; ``too_large``: ask for fewer keys.
        """
        request = messages.range_request(wanted)
        answer = self._call(f"reading {wanted.key}", lambda **how: self._stub(rpc.KVStub).Range(request, **how))
        return messages.page(answer)

    def list(
        self,
        prefix: str,
        *,
        limit: int = 0,
        after: str = "",
        revision: int = 0,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        serializable: bool = False,
    ) -> Page:
        """Read the keys below a prefix that ends in ``/``, in their order; `after` is the last key of the page before.

        Raises:
            EtcdError: They could not be read; ``too_large``: ask for fewer keys.
        """
        first = after + "\0" if after else prefix
        return self.range(
            Range(
                first,
                prefix_end(prefix),
                limit=limit,
                revision=revision,
                keys_only=keys_only,
                count_only=count_only,
                min_mod_revision=min_mod_revision,
                serializable=serializable,
            )
        )

    def pages(
        self, prefix: str, *, size: int = PAGE_KEYS, keys_only: bool = False, serializable: bool = False
    ) -> Iterator[Page]:
        """Read all keys below a prefix, page by page, all as of the revision of the first page.

        Raises:
            EtcdError: A page could not be read; ``compacted``: it took too long, begin again.
        """
        revision, after = 0, ""
        while True:
            page = self.list(
                prefix, limit=size, after=after, revision=revision, keys_only=keys_only, serializable=serializable
            )
            yield page
            if not page.more or not page.items:
                return
            revision, after = revision or page.header.revision, page.items[-1].key

    def put(self, key: str, value: bytes, *, lease: int = 0) -> Header:
        """Write a key.

        Raises:
            EtcdError: It is not known to be written; ``lease_gone``: there is no such lease.
        """
        return self.txn((), (Put(key, value, lease),)).header

    def delete(self, key: str) -> tuple[bool, Header]:
        """Delete a key; the first part of the answer tells whether it was there.

        Raises:
            EtcdError: It is not known to be deleted.
        """
        result = self.txn((), (Delete(key),))
        return bool(result.answers[0]), result.header

    def txn(self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()) -> TxnResult:
        """Do one list of operations if all conditions hold, else the other, as one step.

        A transaction that only reads is refused: etcd before 3.5.7 crashes when its caller gives up while it is under
        way (etcd issues 14110 and 14891), and no agent may be able to do that to a cluster. Read with `range`.

        Raises:
            EtcdError: It is not known to be done.
            ValueError: It only reads.
        """
        if all(isinstance(op, Range) for op in (*success, *failure)):
            raise ValueError("a transaction that only reads can crash etcd before 3.5.7: use range()")
        request = messages.txn_request(compares, success, failure)
        first = next((op.key for op in (*success, *failure)), "")
        answer = self._call(f"a transaction on {first}", lambda **how: self._stub(rpc.KVStub).Txn(request, **how))
        return messages.txn_result(answer)

    # -- leases -------------------------------------------------------------------------------------------

    def lease_grant(self, ttl: int, *, id: int = 0) -> Grant:  # noqa: A002  the field's name in etcd
        """Make a lease of `ttl` seconds; with `id` 0 the server chooses one.

        Raises:
            EtcdError: ``lease_exists``: there is a lease of this id.
        """
        request = rpc.LeaseGrantRequest(TTL=ttl, ID=id)
        answer = self._call("granting a lease", lambda **how: self._stub(rpc.LeaseStub).LeaseGrant(request, **how))
        return Grant(answer.ID, answer.TTL)

    def lease_keepalive(self, id: int) -> int:  # noqa: A002
        """Renew a lease once; return the seconds that it has now, or 0 where it is gone.

        Raises:
            EtcdError: It is not known to be renewed.
        """
        request = rpc.LeaseKeepAliveRequest(ID=id)

        def call(**how: Any) -> Any:
            answers = self._stub(rpc.LeaseStub).LeaseKeepAlive(iter((request,)), **how)
            try:
                return next(answers, None)
            finally:
                answers.cancel()

        answer = self._call("renewing a lease", call)
        if answer is None:
            raise EtcdError("unavailable", "renewing a lease: the stream ended without an answer", self.endpoint)
        return int(answer.TTL)

    def lease_revoke(self, id: int) -> bool:  # noqa: A002
        """End a lease and delete the keys on it. False: there was none.

        Raises:
            EtcdError: It is not known to be ended.
        """
        request = rpc.LeaseRevokeRequest(ID=id)
        try:
            self._call("revoking a lease", lambda **how: self._stub(rpc.LeaseStub).LeaseRevoke(request, **how))
        except EtcdError as error:
            if error.kind == "lease_gone":
                return False
            raise
        return True

    def lease_ttl(self, id: int) -> int:  # noqa: A002
        """Return the seconds that a lease has left; 0: it is gone, or about to be.

        Raises:
            EtcdError: It is not known.
        """
        request = rpc.LeaseTimeToLiveRequest(ID=id)
        answer = self._call(
            "asking for a lease", lambda **how: self._stub(rpc.LeaseStub).LeaseTimeToLive(request, **how)
        )
        return max(0, int(answer.TTL))

    # -- watch --------------------------------------------------------------------------------------------

    def watch(self) -> WatchStream:
        """Return a watch stream without any watch in it yet; it ends with the connection.

        Raises:
            EtcdError: The connection is closed, or the system gives no thread.
        """
        stub = self._stub(rpc.WatchStub)
        stream = WatchStream(self.endpoint, stub.Watch, self._metadata())
        with self._lock:
            closed = self._closed
            self._streams = {old for old in self._streams if not old.ended}
            if not closed:
                self._streams.add(stream)
        if closed:
            stream.cancel()
            raise self._closed_error()
        return stream

    # -- how calls are made -------------------------------------------------------------------------------

    def _make_channel(self) -> Any:
        options: list[tuple[str, Any]] = [
            ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
            # Without this one an unanswered ping counts after a minute only, whatever the line above says.
            ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A channel is one attempt at one address: no state of an earlier one, no retries of gRPC's own, no
            # proxy of the environment in between, no service configuration from DNS.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.default_authority", str(Endpoint(self.address.host, self.address.port))),
        ]
        credentials = None
        if self._access.tls:
            ca, cert, key = read_tls(self._access.files, self.endpoint)
            credentials = grpc.ssl_channel_credentials(ca, key, cert)
            options.append(("grpc.ssl_target_name_override", self.address.host))
        ip = self.address.ip
        # With the family in front no resolver of gRPC's own has a part in it.
        target = f"ipv6:[{ip}]" if ":" in ip else f"ipv4:{ip}"
        try:
            return etcd3.Endpoint(
                target, self.address.port, secure=self._access.tls, creds=credentials, time_retry=0, opts=options
            ).channel
        except (RuntimeError, ValueError) as error:
            raise EtcdError("other", f"no channel can be made: {error}", self.endpoint) from error

    def _stub(self, kind: Any) -> Any:
        with self._lock:
            if self._channel is None:
                raise self._closed_error()
            stub = self._stubs.get(kind.__name__)
            if stub is None:
                stub = self._stubs[kind.__name__] = kind(self._channel)
            return stub

    def _status(self) -> MemberStatus:
        request = rpc.StatusRequest()
        answer = self._once(
            "connecting",
            lambda **how: self._stub(rpc.MaintenanceStub).Status(request, **how),
            self._access.dial_seconds,
        )
        return MemberStatus(messages.header(answer.header), answer.version, answer.leader, answer.dbSize)

    def _authenticate(self, stale: str) -> None:
        """Get a token; does nothing where another thread has replaced the stale one meanwhile."""
        with self._login:
            if self._token != stale:
                return
            password = read_password(self._access.files, self.endpoint)
            request = rpc.AuthenticateRequest(name=self._access.username, password=password)
            self._token = ""
            self.logins += 1
            try:
                answer = self._once(
                    f"logging in as {self._access.username}",
                    lambda **how: self._stub(rpc.AuthStub).Authenticate(request, **how),
                    self._access.call_seconds,
                )
            except EtcdError as error:
                if "authentication is not enabled" in error.text:
                    return  # the server asks for no token, so none is needed
                raise
            self._token = answer.token

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._token
        return (*_LINEARIZABLE, ("token", token)) if token else _LINEARIZABLE

    def _call(self, what: str, call: Callable[..., T]) -> T:
        token = self._token
        try:
            return self._once(what, call, self._access.call_seconds)
        except EtcdError as error:
            if not (self._access.username and isinstance(error.__cause__, grpc.RpcError)):
                raise
            cause: Any = error.__cause__
            if not needs_new_token(cause.code().name, cause.details() or ""):
                raise
        # Tokens expire, and every change of a user or role makes all of them worthless.
        self._authenticate(token)
        return self._once(what, call, self._access.call_seconds)

    def _once(self, what: str, call: Callable[..., T], seconds: float) -> T:
        try:
            return call(timeout=seconds, metadata=self._metadata())
        except grpc.RpcError as error:
            raise to_error(self.endpoint, what, error, closed=self._closed) from error
        except (RuntimeError, ValueError) as error:
            # ValueError: the channel was closed by another thread. RuntimeError: no thread can be started.
            if self._closed:
                raise self._closed_error() from error
            raise EtcdError("other", f"{what}: {error}", self.endpoint) from error

    def _closed_error(self) -> EtcdError:
        return EtcdError("closed", "the connection is closed", self.endpoint)


def to_error(endpoint: str, what: str, error: Any, *, closed: bool) -> EtcdError:
    """Return the exception for a failed gRPC call."""
    if closed:
        return EtcdError("closed", "the connection is closed", endpoint)
    code, detail = error.code().name, error.details() or ""
    kind = kind_of(code, detail)
    return EtcdError(kind, describe(what, kind, code, detail), endpoint)
