"""Header lines to names and values, and the values that have a form of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from broker.errors import BadHeader, BodyTooLong, HeaderTooLong, shown
from broker.stomp.escapes import unescape
from broker.stomp.frames import Version
from broker.stomp.limits import WireLimits

# Names and values of a frame's header lines, unescaped, in their order; repeated ones included.
Lines = tuple[tuple[str, ...], tuple[str, ...]]

_LENGTH: Final = re.compile(r"[0-9]{1,10}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,19}")
_HEART_BEAT: Final = re.compile(r"([0-9]{1,9}),([0-9]{1,9})")
_VERSIONS: Final = {str(version): version for version in Version}
# A second one with another value is how frames are smuggled past a proxy: refused, though the specification
# ("Repeated Header Entries") lets the first win.
_UNREPEATABLE: Final = ("content-length", "receipt", "destination")


def find_end(buf: bytes, lf: int, block_limit: int, crlf: bool) -> tuple[int, int] | None:
    """Where the headers end: (the LF of the last line, the first byte behind the empty line), or None.

    `lf` is the LF of the command line; no more than `block_limit` bytes of header lines are searched.
    """
    cap = lf + block_limit + 3
    end = buf.find(b"\n\n", lf, cap)
    if crlf:
        other = buf.find(b"\n\r\n", lf, cap if end < 0 else end + 1)
        if other >= 0:
            return other, other + 3
    return None if end < 0 else (end, end + 2)


def check_head(region: bytes, limits: WireLimits, block_limit: int, crlf: bool) -> None:
    """Limits and NULs of header lines, whole or as far as they came.

    Looks at the bytes in their order, so that the verdict does not depend on where TCP cut them. Raises
    HeaderTooLong, or BadHeader for a NUL.
    """
    nul = region.find(b"\0")
    if nul >= 0:
        region = region[:nul]
    lines = region.split(b"\n")
    # What follows the last LF is a line in the making; a lone CR may still become the empty line.
    begun = lines[-1] not in ((b"", b"\r") if crlf else (b"",))
    if not begun:
        lines.pop()
    if len(lines) > limits.headers:
        raise HeaderTooLong(f"more than {limits.headers} header lines (limits.headers)")
    for number, line in enumerate(lines, 1):
        size = len(line) - (crlf and line.endswith(b"\r"))
        if size > limits.header_line:
            raise HeaderTooLong(
                f"header line {number} has {size} bytes or more, limits.header_line is {limits.header_line}"
            )
    if len(region) - (crlf and not begun and region.endswith(b"\r")) > block_limit:
        raise HeaderTooLong(f"the headers have more than the {block_limit} bytes that they may have here")
    if nul >= 0:
        raise BadHeader(f"a NUL in header line {region.count(10) + 1}: header lines end with an empty line")


def parse_lines(block: bytes, version: Version, *, connecting: bool, crlf: bool) -> Lines:
    """Names and values of header lines, given without the last line end.

    `connecting`: the lines of CONNECT or CONNECTED, which are never escaped; spaces around the colon are
    trimmed where the peer can speak 1.0 only. Raises BadHeader, BadEscape.
    """
    if not block:
        return (), ()
    try:
        text = block.decode()
    except UnicodeDecodeError as error:
        raise BadHeader(f"headers must be UTF-8, got byte {block[error.start]:#04x} in them") from None
    if crlf and "\r" in text:
        text = text.replace("\r\n", "\n").removesuffix("\r")
        if "\r" in text:
            raise BadHeader("a CR in a header must be followed by LF, or written as \\r")
    names, colons, values = zip(*[line.partition(":") for line in text.split("\n")], strict=True)
    if "" in colons:
        number = colons.index("")
        raise BadHeader(f"header line {number + 1} has no colon: {shown(names[number])}")
    if _is_trimmed(names, values, version, connecting):
        names = tuple([name.strip(" ") for name in names])
        values = tuple([value.strip(" ") for value in values])
    elif not connecting and "\\" in text:
        names = tuple([unescape(name, version) for name in names])
        values = tuple([unescape(value, version) for value in values])
    if "" in names:
        raise BadHeader(f"header line {names.index('') + 1} has an empty name")
    return names, values


def _is_trimmed(names: tuple[str, ...], values: tuple[str, ...], version: Version, connecting: bool) -> bool:
    if not connecting:
        return version is Version.V1_0
    pairs = zip(names, values, strict=True)
    spoken = next((value for name, value in pairs if name.strip(" ") in ("accept-version", "version")), None)
    return choose_version(spoken) is Version.V1_0


def first_wins(lines: Lines) -> dict[str, str]:
    """The headers that count. Raises BadHeader where one that must not is repeated with another value."""
    names, values = lines
    headers = dict(zip(names, values, strict=True))
    if len(headers) == len(names):
        return headers
    headers = dict(zip(reversed(names), reversed(values), strict=True))
    for name, value in zip(names, values, strict=True):
        if name in _UNREPEATABLE and value != headers[name]:
            raise BadHeader(f"{name} is repeated with another value: {shown(headers[name])}, {shown(value)}")
    return headers


def parse_content_length(value: str) -> int:
    """Bytes, 0 to 9,999,999,999. Raises BadHeader unless the value is 1-10 ASCII digits and nothing else."""
    if _LENGTH.fullmatch(value) is None:
        raise BadHeader(f"content-length must be 1 to 10 digits, got {shown(value)}")
    return int(value)


def body_size(headers: Mapping[str, str], limits: WireLimits) -> int:
    """content-length of a frame that may have a body, -1 without. Raises BadHeader, BodyTooLong."""
    value = headers.get("content-length")
    if value is None:
        return -1
    size = parse_content_length(value)
    if size > limits.body:
        raise BodyTooLong(f"content-length is {size} bytes, limits.body allows {limits.body}")
    return size


def parse_heart_beat(value: str) -> tuple[int, int]:
    """(can send, wants) in milliseconds, 0 = never. STOMP 1.2, "Heart-beating".

    Raises BadHeader unless `value` is two numbers of 1-9 digits around one comma.
    """
    match = _HEART_BEAT.fullmatch(value)
    if match is None:
        raise BadHeader(f"heart-beat must be two numbers of 1 to 9 digits around a comma, got {shown(value)}")
    return int(match[1]), int(match[2])


def parse_number(headers: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """The whole number in header `name`, from `low` to `high`; None where the header is absent.

    Raises BadHeader, which names header, value and range.
    """
    value = headers.get(name)
    if value is None:
        return None
    number = int(value) if _NUMBER.fullmatch(value) is not None else None
    if number is None or not low <= number <= high:
        raise BadHeader(f"{name} must be a whole number from {low} to {high}, got {shown(value)}")
    return number


def choose_version(accept_version: str | None) -> Version | None:
    """The highest version both sides speak, None where there is none. STOMP 1.2, "Protocol Negotiation".

    `accept_version` is the header's value: versions in any order, unknown ones ignored; no header means 1.0.
    """
    if accept_version is None:
        return Version.V1_0
    offered = (_VERSIONS.get(part.strip(" ")) for part in accept_version.split(","))
    return max((version for version in offered if version is not None), default=None)
