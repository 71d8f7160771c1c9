"""The little of HTTP/1.1 that a scrape needs: one GET, one answer, then the connection is closed. Pure."""

from __future__ import annotations

from garrison.supervisor.metrics.exposition import CONTENT_TYPE

MAX_REQUEST_BYTES = 8 * 1024
"""Request line and header lines together; Prometheus sends some 300 bytes."""

PATH = "/metrics"
_TEXTS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    505: "HTTP Version Not Supported",
}


def complete(data: bytes | bytearray) -> bool:
    """Tell whether the head of a request is whole."""
    return b"\r\n\r\n" in data or b"\n\n" in data


def judge(data: bytes | bytearray) -> int:
    """Return the status for the head of a request: 200 where it is a GET of `PATH`."""
    line = bytes(data).partition(b"\n")[0].rstrip(b"\r")
    parts = line.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/"):
        return 400
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return 505
    if target.partition(b"?")[0] != PATH.encode():
        return 404
    return 200 if method == b"GET" else 405


def answer(status: int, body: bytes = b"") -> bytes:
    """Return the head of an answer, and the body of one that is no 200: that of a 200 is sent behind it."""
    if status != 200:
        body = f"{status} {_TEXTS[status]}: this answers GET {PATH} and nothing else\n".encode()
    lines = [
        f"HTTP/1.1 {status} {_TEXTS[status]}",
        f"Content-Type: {CONTENT_TYPE if status == 200 else 'text/plain; charset=utf-8'}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(["Allow: GET"] if status == 405 else []),
    ]
    head = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    return head if status == 200 else head + body
