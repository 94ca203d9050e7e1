"""One written value -> what is kept, by kind. ValueError says what is wrong beyond `Key.allowed`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from .settings import Key, Kind
from .units import Address, parse_size, parse_time


def from_text(kind: Kind, raw: object) -> object:
    """What a TOML file would have had for a text from a variable or a flag."""
    if not isinstance(raw, str):
        return raw
    if kind is Kind.COUNT and re.fullmatch(r"[0-9]{1,10}", raw):
        return int(raw)
    if kind is Kind.FLAG and raw in ("true", "false"):
        return raw == "true"
    if kind is Kind.ADDRESSES:
        return [part.strip() for part in raw.split(",") if part.strip()]
    return raw


def _text(key: Key, raw: object) -> str:
    if not isinstance(raw, str) or not raw or "\0" in raw:
        raise ValueError("not empty, no NUL")
    return raw


def _choice(key: Key, raw: object) -> str:
    if raw not in key.choices:
        raise ValueError
    return str(raw)


def _flag(key: Key, raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def _bounded(key: Key, value: float) -> Any:
    if not key.low <= value <= key.high:
        raise ValueError
    return value


def _count(key: Key, raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise ValueError
    return int(_bounded(key, raw))


def _size(key: Key, raw: object) -> int:
    if isinstance(raw, str):
        try:
            raw = parse_size(raw)
        except ValueError:
            raise ValueError from None
    return _count(key, raw)


def _millis(key: Key, raw: object) -> int:
    return int(_bounded(key, _time(raw)))


def _seconds(key: Key, raw: object) -> float:
    return float(_bounded(key, _time(raw) / 1000))


def _time(raw: object) -> int:
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        raise ValueError(f'a number has no unit: write "{raw}s" or "{raw}ms"')
    try:
        return parse_time(raw if isinstance(raw, str) else "")
    except ValueError:
        raise ValueError from None


def _addresses(key: Key, raw: object) -> tuple[Address, ...]:
    if not isinstance(raw, list | tuple) or not all(isinstance(text, str) for text in raw):
        raise ValueError
    found: list[Address] = []
    for text in raw:
        try:
            address = Address.parse(text)
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None
        if address.port and address in found:
            raise ValueError(f"{text} is there twice")
        found.append(address)
    if not found and key.name == "stomp.listen":
        raise ValueError("at least one: nobody could connect")
    return tuple(found)


READ: Final[Mapping[Kind, Callable[[Key, object], Any]]] = {
    Kind.TEXT: _text,
    Kind.FLAG: _flag,
    Kind.CHOICE: _choice,
    Kind.COUNT: _count,
    Kind.SIZE: _size,
    Kind.SECONDS: _seconds,
    Kind.MILLIS: _millis,
    Kind.ADDRESSES: _addresses,
}
