"""CONNECT and what follows from it: version, heart-beats, CONNECTED; and the ERROR frames."""

from __future__ import annotations

import re
from typing import Final

from broker.config import Limits
from broker.errors import BadHeader, ProtocolError, VersionRefused
from broker.stomp import Frame, Version, choose_version, encode, parse_heart_beat

_PLAIN: Final = re.compile(r"[\w.@ -]{1,128}")  # what may be said in a CONNECTED, which has no escapes
_GRACE: Final = 2.0  # x the interval without a byte, then a peer is dead
_EARLY: Final = 0.8  # x the interval, when our own heart-beat leaves: clients allow for little delay
_NEVER: Final = 3600.0  # s; how long nothing is due at most
HTTP_REFUSAL: Final = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_DETAIL_MAX: Final = 255  # bytes, and an LF behind them


class Heart:
    """Heart-beats both ways, in seconds of the monotonic clock; 0 is never. STOMP 1.2, "Heart-beating"."""

    __slots__ = ("_expect", "_send", "heard", "wrote")

    def __init__(self, now: float) -> None:
        self.heard = now
        self.wrote = now
        self._send = 0.0
        self._expect = 0.0

    def start(self, beats: tuple[int, int], now: float) -> None:
        """`beats`: (we send, we expect) in milliseconds."""
        self._send, self._expect = beats[0] / 1000 * _EARLY, beats[1] / 1000 * _GRACE
        self.heard = self.wrote = now

    def dead(self, now: float) -> bool:
        return bool(self._expect) and now >= self.heard + self._expect

    def beat(self, now: float) -> bool:
        """Whether a heart-beat is to be sent now."""
        return bool(self._send) and now >= self.wrote + self._send

    def due(self, now: float) -> float:
        due = now + _NEVER
        if self._expect:
            due = min(due, max(self.heard + self._expect, now + 0.01))
        if self._send:
            due = min(due, max(self.wrote + self._send, now + 0.01))
        return due


def negotiate(frame: Frame, limits: Limits) -> tuple[Version, tuple[int, int]]:
    """The version, and the heart-beats (we send, we expect) in ms. Raises VersionRefused, BadHeader."""
    accepted = frame.headers.get("accept-version")
    version = choose_version(accepted)
    if version is None:
        raise VersionRefused("supported versions are 1.0, 1.1 and 1.2")
    can_send, wants = parse_heart_beat(frame.headers.get("heart-beat", "0,0"))
    if version is Version.V1_0:
        return version, (0, 0)
    send = max(limits.heart_beat_send, wants) if wants and limits.heart_beat_send else 0
    expect = max(limits.heart_beat_receive, can_send) if can_send and limits.heart_beat_receive else 0
    return version, (send, expect)


def connected(frame: Frame, version: Version, token: str, limits: Limits) -> bytes:
    """CONNECTED. No value in it holds a colon: some clients part a line at its last one."""
    headers = frame.headers
    lines = [
        ("version", str(version)),
        ("session", token),
        ("server", "stompd"),
        ("heart-beat", f"{limits.heart_beat_send},{limits.heart_beat_receive}"),
    ]
    for ours, theirs in (("user-name", "login"), ("response-id", "request-id"), ("receipt-id", "receipt")):
        if _PLAIN.fullmatch(headers.get(theirs, "")):
            lines.append((ours, headers[theirs]))
    return encode(version, "CONNECTED", lines) + b"\n"


def error_frame(error: ProtocolError, version: Version, receipt: bytes | None, *, known: bool) -> bytes:
    """ERROR. A stranger gets the fixed text only; after login the body says what was expected and what came."""
    lines = [("message", error.summary), ("content-type", "text/plain")]
    if isinstance(error, VersionRefused):
        lines.append(("version", "1.0,1.1,1.2"))
    detail = str(error).encode(errors="replace") if known else error.summary.encode()
    if len(detail) > _DETAIL_MAX:
        detail = detail[:_DETAIL_MAX].decode(errors="ignore").encode()
    frame = encode(version, "ERROR", lines, detail + b"\n") + b"\n"
    return frame if receipt is None else _with_receipt(frame, receipt)


def storage_error(receipt: bytes | None) -> bytes:
    frame = encode(
        Version.V1_2,
        "ERROR",
        [("message", "storage failure"), ("content-type", "text/plain")],
        b"the broker can keep nothing any more and stops; what was not receipted may be lost\n",
    ) + b"\n"
    return frame if receipt is None else _with_receipt(frame, receipt)


def _with_receipt(frame: bytes, receipt: bytes) -> bytes:
    # The value is escaped for this connection already, so it goes in as it is.
    return frame.replace(b"ERROR\n", b"ERROR\nreceipt-id:" + receipt + b"\n", 1)


def needed(frame: Frame, name: str) -> str:
    """A header that the frame cannot do without. Raises BadHeader."""
    value = frame.headers.get(name)
    if not value:
        raise BadHeader(f"{frame.command} needs a {name} header, there is none")
    return value
