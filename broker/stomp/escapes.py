"""The escape sequences of header names and values (STOMP 1.1 and 1.2, "Value Encoding")."""

from __future__ import annotations

import re
from typing import Final

from broker.errors import BadEscape, shown
from broker.stomp.frames import Version

# STOMP 1.0 knows no escapes. 1.1 has three; a CR is an ordinary octet there and has no escape.
_ESCAPES: Final = {
    Version.V1_0: str.maketrans({}),
    Version.V1_1: str.maketrans({"\\": "\\\\", "\n": "\\n", ":": "\\c"}),
    Version.V1_2: str.maketrans({"\\": "\\\\", "\n": "\\n", ":": "\\c", "\r": "\\r"}),
}
_NEEDS_ESCAPE: Final = re.compile(r"[\\\n:\r]")
_SEQUENCE: Final = re.compile(r"\\(.?)", re.DOTALL)
_MEANING: Final = {
    Version.V1_1: {"n": "\n", "c": ":", "\\": "\\"},
    Version.V1_2: {"n": "\n", "c": ":", "\\": "\\", "r": "\r"},
}


def escape(value: str, version: Version) -> str:
    """A name or value as it is written in a header line of `version`; 1.0, and 1.1 for CR, change nothing."""
    if _NEEDS_ESCAPE.search(value) is None:
        return value
    return value.translate(_ESCAPES[version])


def unescape(raw: str, version: Version) -> str:
    """What a raw name or value means. Raises BadEscape for a sequence that `version` does not define."""
    if version is Version.V1_0 or "\\" not in raw:
        return raw
    meaning = _MEANING[version]

    def plain(match: re.Match[str]) -> str:
        found = meaning.get(match[1])
        if found is None:
            allowed = " ".join("\\" + letter for letter in meaning)
            raise BadEscape(f"STOMP {version} knows {allowed}, got {shown(match[0])} in {shown(raw)}")
        return found

    return _SEQUENCE.sub(plain, raw)
