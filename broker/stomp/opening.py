"""The first bytes of a connection: is this a STOMP client at all."""

from __future__ import annotations

from typing import Final

from broker.errors import NotAllowedNow, NotStomp, shown

EOLS_BEFORE_CONNECT: Final = 16

CLIENT_COMMANDS: Final = (
    "SEND", "SUBSCRIBE", "UNSUBSCRIBE", "ACK", "NACK", "BEGIN", "COMMIT", "ABORT", "DISCONNECT",
)  # fmt: skip
SERVER_COMMANDS: Final = ("CONNECTED", "MESSAGE", "RECEIPT", "ERROR")
CONNECT_COMMANDS: Final = ("CONNECT", "STOMP")

_VERBS: Final = ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PRI")
_WORDS: Final = (
    *((f"{name}{eol}".encode(), "connect") for name in CONNECT_COMMANDS for eol in ("\n", "\r\n")),
    *((f"{name} ".encode(), "http") for name in _VERBS),
    *(
        (f"{name}{eol}".encode(), "early")
        for name in CLIENT_COMMANDS + SERVER_COMMANDS
        for eol in ("\n", "\r\n")
    ),
)


def check_opening(first: bytes) -> bool:
    """True where `first` begins with a whole CONNECT or STOMP line, False where only more bytes can tell.

    Refuses at the first byte that begins no word we know, so a stranger is not listened to for longer. Raises
    NotStomp (with a hint for HTTP and TLS), and NotAllowedNow for another STOMP command.
    """
    if first[:1] == b"\x16":
        raise NotStomp("expected CONNECT or STOMP, got a TLS handshake", "tls")
    open_end = False
    for word, kind in _WORDS:
        if first.startswith(word):
            if kind == "connect":
                return True
            command = shown(word.strip())
            if kind == "http":
                raise NotStomp(f"expected CONNECT or STOMP, got an HTTP request: {command}", "http")
            raise NotAllowedNow(f"expected CONNECT or STOMP first, got {command}")
        open_end = open_end or word.startswith(first)
    if not open_end:
        raise NotStomp(f"expected CONNECT or STOMP, got {shown(first[:16])}")
    return False
