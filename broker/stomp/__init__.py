"""The wire, sans-IO: bytes <-> frames, escapes, versions. Knows no broker."""

from broker.stomp.encode import canonical_lines, encode, lines_for
from broker.stomp.escapes import escape, unescape
from broker.stomp.frames import AckRun, Block, Frame, SendRun, Version
from broker.stomp.headers import choose_version, parse_heart_beat, parse_number
from broker.stomp.limits import Role, WireLimits
from broker.stomp.parser import Parser

__all__ = [
    "AckRun",
    "Block",
    "Frame",
    "Parser",
    "Role",
    "SendRun",
    "Version",
    "WireLimits",
    "canonical_lines",
    "choose_version",
    "encode",
    "escape",
    "lines_for",
    "parse_heart_beat",
    "parse_number",
    "unescape",
]
