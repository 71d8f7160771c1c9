"""When a certificate ends, read from its file with nothing but the standard library. Pure.

The library ``cryptography`` is no part of what hosts run, and the standard library shows the certificate of a server
only. What stands in front of the dates in a certificate (RFC 5280, 4.1) is few fields, which are stepped over.
"""

from __future__ import annotations

import binascii
import datetime as dt

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def ends_at(pem: bytes) -> dt.datetime:
    """Return when the first certificate of a PEM file ends.

    Raises:
        ValueError: It holds none that can be read.
    """
    _, _, rest = pem.partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if not end:
        raise ValueError("no certificate in PEM form")
    try:
        der = binascii.a2b_base64(body)
    except binascii.Error as error:
        raise ValueError(f"no certificate in PEM form: {error}") from None
    certificate, _ = _inside(der, _SEQUENCE)
    fields, _ = _inside(certificate, _SEQUENCE)
    if fields[:1] == bytes((_VERSION,)):
        fields = _behind(fields)
    for _ in ("serial number", "signature algorithm", "issuer"):
        fields = _behind(fields)
    validity, _ = _inside(fields, _SEQUENCE)
    return _time(_behind(validity))


def _time(data: bytes) -> dt.datetime:
    tag, start, end = _element(data)
    text = data[start:end].decode("ascii", "replace")
    if tag == _UTC_TIME:
        # Two digits of the year; RFC 5280 has 50 to 99 in the last century.
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a certificate without an end")
    return dt.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)


def _inside(data: bytes, wanted: int) -> tuple[bytes, bytes]:
    tag, start, end = _element(data)
    if tag != wanted:
        raise ValueError("not the form of a certificate")
    return data[start:end], data[end:]


def _behind(data: bytes) -> bytes:
    return data[_element(data)[2] :]


def _element(data: bytes) -> tuple[int, int, int]:
    """Return the tag of the first element, and where its content begins and ends."""
    if len(data) < 2:
        raise ValueError("a certificate that is cut off")
    size, start = data[1], 2
    if size & 0x80:
        count = size & 0x7F
        if not 0 < count <= 4 or len(data) < 2 + count:
            raise ValueError("not the form of a certificate")
        size, start = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if start + size > len(data):
        raise ValueError("a certificate that is cut off")
    return data[0], start, start + size
