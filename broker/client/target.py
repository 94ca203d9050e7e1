"""Where to connect and as whom: `stomp://[user[:pass]@]host:port`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from ..config import Address
from ..errors import UsageError

DEFAULT_PORT: Final = 61613
DEFAULT_URL: Final = f"stomp://localhost:{DEFAULT_PORT}"

_URL = re.compile(r"stomp://(?:(?P<user>[^@/:]*)(?::(?P<password>[^@/]*))?@)?(?P<place>[^@/]+)/?")
_HAS_PORT = re.compile(r"(?:\[[^]]*\]|[^:]*):[0-9]+")


@dataclass(frozen=True, slots=True)
class Target:
    """`login` and `passcode` are "" where the URL has none. The passcode is in no text made of this."""

    address: Address
    login: str = ""
    passcode: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Port 61613 where there is none; user and password are percent-decoded. Raises UsageError."""
        found = _URL.fullmatch(url)
        if found is None:
            raise UsageError(
                f"{_hide(url)!r} is no URL of a broker; expected stomp://[user[:password]@]host[:port]"
            )
        place = found["place"]
        try:
            address = Address.parse(place if _HAS_PORT.fullmatch(place) else f"{place}:{DEFAULT_PORT}")
        except ValueError as error:
            raise UsageError(f"{_hide(url)!r}: {error}") from None
        if address.port == 0:
            raise UsageError(f"{_hide(url)!r}: nobody can listen on port 0")
        login, passcode = unquote(found["user"] or ""), unquote(found["password"] or "")
        if not (login + passcode).isprintable():
            # CONNECT knows no escapes: a line feed in here would write headers of its own.
            raise UsageError(f"{_hide(url)!r}: user and password may have no control characters")
        return cls(address, login, passcode)

    def __str__(self) -> str:
        return str(self.address)


def _hide(url: str) -> str:
    """A URL for a message: what may be a password is left out."""
    return re.sub(r"//[^/]*@", "//...@", url)
