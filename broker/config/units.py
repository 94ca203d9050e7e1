"""How sizes, times and addresses are written by people, and read back: "64MiB", "500ms", "[::1]:61613"."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

SIZE_UNITS: Final = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
}
TIME_UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}  # in milliseconds

_SIZE = re.compile(r"([0-9]{1,12})(B|KB|MB|GB|KiB|MiB|GiB)?")
_TIME = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?(ms|s|m|h)")
_ADDRESS = re.compile(
    r"(?:\[([0-9A-Fa-f:.]{2,45}(?:%[0-9A-Za-z_.-]{1,32})?)\]|([0-9A-Za-z_.-]{1,253})):([0-9]{1,5})"
)


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError unless `text` is 1-12 digits, with a unit of SIZE_UNITS or none."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no size")
    return int(found[1]) * SIZE_UNITS[found[2] or "B"]


def format_size(size: int) -> str:
    """The shortest exact text that `parse_size` gives back as `size`."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def parse_time(text: str) -> int:
    """Milliseconds. Raises ValueError unless `text` is a number with one of the units ms, s, m, h."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no time")
    unit = TIME_UNITS[found[3]]
    return int(found[1]) * unit + int((found[2] or "0").ljust(3, "0")) * unit // 1000


def format_time(milliseconds: int) -> str:
    """The shortest exact text that `parse_time` gives back as `milliseconds`."""
    for unit in ("h", "m", "s"):
        if milliseconds and milliseconds % TIME_UNITS[unit] == 0:
            return f"{milliseconds // TIME_UNITS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens or a client connects to. Port 0: the system picks one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """From `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError that says what was expected."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            if text.isascii() and re.fullmatch(r"[0-9A-Fa-f:]+:[0-9]+", text) and text.count(":") > 1:
                raise ValueError("an IPv6 address goes in brackets, such as [::1]:61613")
            if text.startswith(("*:", ":")):
                raise ValueError("every address of the machine is written 0.0.0.0:PORT or [::]:PORT")
            raise ValueError("expected HOST:PORT, such as 127.0.0.1:61613 or [::1]:61613")
        if found[1] is not None:
            try:
                ipaddress.IPv6Address(found[1])
            except ValueError:
                raise ValueError(f"{found[1]} is no IPv6 address") from None
        port = int(found[3])
        if port > 65535:
            raise ValueError("a port is 0 to 65535 (0: the system picks one)")
        return cls(found[1] or found[2], port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. Of names, `localhost` only: DNS may say anything."""
        if self.host.lower() == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
