"""Frames to bytes. No name or value can become a header or a frame of its own, in any version."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from broker.stomp.escapes import escape, unescape
from broker.stomp.frames import Version

__all__ = ["canonical_lines", "encode", "escape", "lines_for", "unescape"]

# What would end the line or the frame where it stands raw. A CR is no line end in 1.1; it goes out as it is.
_FORGES_RAW: Final = re.compile("[\n\r\0]")
_PAIR: Final = re.compile(rb"\\(.)", re.DOTALL)


def _line(name: str, value: str, version: Version | None) -> bytes | None:
    """One header line; `version` None means no escapes at all. None where the version cannot say it."""
    if not name or name == "content-length":
        return None
    if version is None or version is Version.V1_0:
        if ":" in name or not name.strip(" ") or _FORGES_RAW.search(name) or _FORGES_RAW.search(value):
            return None
        return f"{name}:{value}\n".encode()
    if "\0" in name or "\0" in value:
        return None
    return f"{escape(name, version)}:{escape(value, version)}\n".encode()


def encode(version: Version, command: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """One whole frame, with its NUL.

    `content-length` is written where there is a body and nowhere else; one in `headers` is left out. So is a
    header that the version has no way to write: an empty name, a NUL, and (in 1.0, CONNECT and CONNECTED,
    which have no escapes) a line end, or a colon in the name.
    """
    lines = None if command in ("CONNECT", "CONNECTED") else version
    parts = [command.encode(), b"\n"]
    for name, value in headers:
        line = _line(name, value, lines)
        if line is not None:
            parts.append(line)
    if body:
        parts.append(b"content-length:%d\n" % len(body))
    parts += (b"\n", body, b"\0")
    return b"".join(parts)


def canonical_lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """`name:value\\n` lines, escaped as STOMP 1.2 does: the form in which headers are stored."""
    lines = (_line(name, value, Version.V1_2) for name, value in pairs)
    return b"".join([line for line in lines if line is not None])


def lines_for(version: Version, canonical: bytes) -> tuple[bytes, int]:
    """Canonical lines as `version` writes them, and how many headers had to be dropped.

    1.1 has no escape for CR, which is an ordinary octet there. 1.0 has no escapes: a header with a line end
    in it, or with a colon in its name, would forge another header and is dropped.
    """
    if version is Version.V1_2 or b"\\" not in canonical:
        return canonical, 0
    if version is Version.V1_1:
        return _PAIR.sub(lambda pair: b"\r" if pair[1] == b"r" else pair[0], canonical), 0
    kept: list[bytes] = []
    dropped = 0
    for raw in canonical.decode().split("\n")[:-1]:
        name, _, value = raw.partition(":")
        line = _line(unescape(name, Version.V1_2), unescape(value, Version.V1_2), Version.V1_0)
        if line is None:
            dropped += 1
        else:
            kept.append(line)
    return b"".join(kept), dropped
