"""How much a peer may make the parser hold, and which side of the wire the parser is on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

KIB = 1024
MIB = 1024 * KIB


class Role(Enum):
    """SERVER reads what clients send, CLIENT reads what a server sends."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Limits of one connection's input, in bytes but for `headers`. All are enforced while reading.

    preauth_frame: the whole CONNECT frame, NUL included; a stranger gets no more than one CONNECT needs.
    header_line:   one header line without its line end.
    headers:       header lines in a frame, repeated ones included.
    header_block:  all header lines with their line ends, without the command and the empty line.
    body:          the body without its NUL.
    """

    preauth_frame: int = 8 * KIB
    header_line: int = 8 * KIB
    headers: int = 64
    header_block: int = 32 * KIB
    body: int = 4 * MIB
