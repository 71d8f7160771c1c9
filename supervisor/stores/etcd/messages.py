"""Between the values of `results` and the protobuf messages of the stubs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from garrison.supervisor.stores.etcd.library import rpc
from garrison.supervisor.stores.etcd.results import (
    Compare,
    Delete,
    Event,
    Header,
    KeyValue,
    Op,
    Page,
    Put,
    Range,
    TxnResult,
    WatchNews,
)

_RELATIONS = {
    "=": rpc.Compare.EQUAL,
    ">": rpc.Compare.GREATER,
    "<": rpc.Compare.LESS,
    "!=": rpc.Compare.NOT_EQUAL,
}
_TARGETS = {
    "version": (rpc.Compare.VERSION, "version"),
    "create": (rpc.Compare.CREATE, "create_revision"),
    "mod": (rpc.Compare.MOD, "mod_revision"),
    "lease": (rpc.Compare.LEASE, "lease"),
    "value": (rpc.Compare.VALUE, "value"),
}
_DELETE_EVENT = 1


def encode(key: str) -> bytes:
    """Return a key's bytes."""
    return key.encode("utf-8", "surrogateescape")


def decode(key: bytes) -> str:
    """Return a key's text, with surrogate escapes where it is no UTF-8."""
    return key.decode("utf-8", "surrogateescape")


def range_request(wanted: Range) -> Any:
    """Return the message for a read."""
    return rpc.RangeRequest(
        key=encode(wanted.key),
        range_end=encode(wanted.end),
        limit=wanted.limit,
        revision=wanted.revision,
        keys_only=wanted.keys_only,
        count_only=wanted.count_only,
        min_mod_revision=wanted.min_mod_revision,
        serializable=wanted.serializable,
        sort_order=rpc.RangeRequest.DESCEND if wanted.newest_first else rpc.RangeRequest.NONE,
        sort_target=rpc.RangeRequest.MOD if wanted.newest_first else rpc.RangeRequest.KEY,
    )


def txn_request(compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> Any:
    """Return the message for a transaction."""
    return rpc.TxnRequest(
        compare=[_compare(compare) for compare in compares],
        success=[_operation(op) for op in success],
        failure=[_operation(op) for op in failure],
    )


def watch_request(key: str, end: str, start_revision: int) -> Any:
    """Return the message that begins a watch; with progress notifications."""
    return rpc.WatchRequest(
        create_request=rpc.WatchCreateRequest(
            key=encode(key), range_end=encode(end), start_revision=start_revision, progress_notify=True
        )
    )


def header(message: Any) -> Header:
    """Return the header of an answer."""
    return Header(message.cluster_id, message.member_id, message.revision, message.raft_term)


def page(message: Any) -> Page:
    """Return the answer to a read."""
    return Page(header(message.header), tuple(_item(kv) for kv in message.kvs), message.more, message.count)


def txn_result(message: Any) -> TxnResult:
    """Return the answer to a transaction; pages in it carry its header."""
    whole = header(message.header)
    return TxnResult(whole, message.succeeded, tuple(_answer(part, whole) for part in message.responses))


def watch_news(message: Any) -> WatchNews:
    """Return one message of a watch stream."""
    return WatchNews(
        header(message.header),
        tuple(_event(event) for event in message.events),
        message.created,
        message.canceled,
        message.compact_revision,
        message.cancel_reason,
    )


def _compare(compare: Compare) -> Any:
    target, field = _TARGETS[compare.target]
    return rpc.Compare(
        key=encode(compare.key), target=target, result=_RELATIONS[compare.relation], **{field: compare.value}
    )


def _operation(op: Op) -> Any:
    if isinstance(op, Range):
        return rpc.RequestOp(request_range=range_request(op))
    if isinstance(op, Put):
        return rpc.RequestOp(request_put=rpc.PutRequest(key=encode(op.key), value=op.value, lease=op.lease))
    assert isinstance(op, Delete)
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=encode(op.key)))


def _item(kv: Any) -> KeyValue:
    return KeyValue(decode(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _answer(part: Any, whole: Header) -> Page | int | None:
    match part.WhichOneof("response"):
        case "response_range":
            read = part.response_range
            return Page(whole, tuple(_item(kv) for kv in read.kvs), read.more, read.count)
        case "response_delete_range":
            return int(part.response_delete_range.deleted)
    return None


def _event(event: Any) -> Event:
    kv = event.kv
    return Event(decode(kv.key), kv.value, kv.mod_revision, event.type == _DELETE_EVENT)
