"""A TOML file, variables and flags -> Settings, or one ConfigError that names everything that is wrong."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from ..errors import ConfigError
from .settings import NEIGHBOURS, Key, Kind, Settings, keys, show
from .values import READ, from_text

# Variables of the same prefix that are none of ours to judge: what the client reads, and what Kubernetes
# puts into every container of a name space that has a service called stompd.
_OTHER_VARIABLES: Final = re.compile(
    r"STOMPD_URL|STOMPD_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_.*)?)"
)


def load(path: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Flags beat variables beat the file beats the defaults.

    `path`: a TOML file, or None. `flags`: full key names -> value, None where the flag was not given; a text
    is read as in a variable, a list of texts as a list. Raises ConfigError with all that is wrong.
    """
    problems: list[str] = []
    table = {key.name: key for key in keys()}
    given: dict[str, tuple[object, str]] = {}
    if path is not None:
        _take(_flatten(_read(path), path, table, problems), f"file {path}", path, given, table, problems)
    _take(_variables(environ, table, problems), "variable", "", given, table, problems)
    _take(
        {name: value for name, value in flags.items() if value is not None},
        "flag",
        "",
        given,
        table,
        problems,
    )
    if not problems:
        settings = _build(given)
        settings = _order(settings, table, problems)
        _refuse_open_doors(settings, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _read(path: str) -> dict[str, Any]:
    # Settings are read before there are doors to pass in, so `open` stands here.
    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read().decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line ([0-9]+), column ([0-9]+)\)", str(error))
        where = f":{place[1]}:{place[2]}" if place else ""
        what = str(error)[: place.start()] if place else str(error)
        raise ConfigError(f"{path}{where}: not TOML: {what}") from None
    except (ValueError, RecursionError):  # tomllib lets these through: numbers of thousands of digits, deep nesting
        raise ConfigError(f"{path}: not TOML that can be read: a number or the nesting is too long") from None


def _flatten(
    tree: Mapping[str, Any], path: str, table: Mapping[str, Key], problems: list[str]
) -> dict[str, object]:
    """Sections to full names; what the table does not know is a problem, with the nearest key."""
    sections = {name.split(".")[0] for name in table if "." in name}
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if name in table:
            flat[name] = value
        elif name not in sections:
            what = "section" if isinstance(value, dict) else "key"
            inner = f" (as {name}.{next(iter(value))})" if isinstance(value, dict) and value else ""
            problems.append(f"{path}: {name}: there is no such {what}{inner}"
                            + _nearest(name, [*sections, *table]))  # fmt: skip
        elif not isinstance(value, dict):
            problems.append(
                f"{path}: {name} = {_quote(value)}: {name} is a section, write [{name}] above its keys"
            )
        else:
            for key, inner_value in value.items():
                full = f"{name}.{key}"
                if full in table:
                    flat[full] = inner_value
                else:
                    problems.append(f"{path}: {full}: there is no such key" + _nearest(full, table))
    return flat


def _nearest(name: str, known: Sequence[str] | Mapping[str, Key]) -> str:
    """The nearest known name, by the whole name or by its last part in any section."""
    names = list(known)
    found = difflib.get_close_matches(name, names, 1, 0.75)
    if not found:
        last = {candidate.rpartition(".")[2]: candidate for candidate in names}
        found = [last[match] for match in difflib.get_close_matches(name.rpartition(".")[2], last, 1, 0.6)]
    return (
        f"; did you mean {found[0]}?" if found else f"; known: {', '.join(names)}" if len(names) < 12 else ""
    )


def _variables(
    environ: Mapping[str, str], table: Mapping[str, Key], problems: list[str]
) -> dict[str, object]:
    known = {key.variable: key.name for key in table.values()}
    values: dict[str, object] = {}
    for variable, text in sorted(environ.items()):
        if variable in known:
            values[known[variable]] = text
        elif variable.startswith("STOMPD_") and not _OTHER_VARIABLES.fullmatch(variable):
            problems.append(f"variable {variable}: there is no such key" + _nearest(variable, list(known)))
    return values


def _take(
    values: Mapping[str, object],
    origin: str,
    file: str,
    given: dict[str, tuple[object, str]],
    table: Mapping[str, Key],
    problems: list[str],
) -> None:
    """Check one layer of values and lay it over those before it."""
    for name, raw in values.items():
        key = table[name]
        label = (
            f"{file}: {name}"
            if file
            else f"variable {key.variable}"
            if origin == "variable"
            else f"flag for {name}"
        )
        try:
            value = READ[key.kind](key, raw if file else from_text(key.kind, raw))
        except ValueError as error:
            detail = f" ({error})" if str(error) else ""
            problems.append(f"{label} = {_quote(raw)}: expected {key.allowed}{detail}")
        else:
            given[name] = (value, f"variable {key.variable}" if origin == "variable" else origin)


def _quote(raw: object) -> str:
    try:
        text = f'"{raw}"' if isinstance(raw, str) else str(raw).lower() if isinstance(raw, bool) else str(raw)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number that is too long to show"
    return text if len(text) <= 80 else text[:77] + "..."


def _build(given: Mapping[str, tuple[object, str]]) -> Settings:
    settings = Settings()
    for name, (value, origin) in given.items():
        settings = _with(settings, name, value, origin)
    return settings


def _with(settings: Settings, name: str, value: object, origin: str) -> Settings:
    origins = MappingProxyType({**settings.origins, name: origin})
    section, _, key = name.rpartition(".")
    if not section:
        return replace(settings, origins=origins, **{key: value})  # type: ignore[arg-type]
    changed = replace(getattr(settings, section), **{key: value})
    return replace(settings, origins=origins, **{section: changed})


def _order(settings: Settings, table: Mapping[str, Key], problems: list[str]) -> Settings:
    """NEIGHBOURS: lower the defaults that would be over, refuse what somebody wrote."""
    for small, large, share in NEIGHBOURS:
        most = settings.get(large) // share
        if settings.get(small) <= most:
            continue
        if small not in settings.origins:
            settings = _with(settings, small, most, f"default, lowered to fit {large}")
            continue
        kind = table[small].kind
        part = "" if share == 1 else f"a {('', '', 'half', 'third', 'quarter')[share]} of "
        problems.append(
            f"{settings.origins[small]}: {small} = {show(kind, settings.get(small))}: may be at most"
            f" {part}{large}, which is {show(kind, settings.get(large))}"
            f" ({settings.origins.get(large, 'default')})"
        )
    return settings


def _refuse_open_doors(settings: Settings, problems: list[str]) -> None:
    """Secure, or it does not start: who listens off loopback must have written that everyone may come in."""
    for name in ("stomp.listen", "http.listen"):
        taken = [address for address in settings.get(name) if not address.is_loopback]
        missing = [key for key in ("anonymous", "i_accept_plaintext") if not getattr(settings.access, key)]
        if taken and missing:
            problems.append(
                f"{settings.origins.get(name, 'default')}: {name} = {show(Kind.ADDRESSES, taken)}: other"
                " machines could reach it, and there is no password and no encryption. Listen on 127.0.0.1;"
                " or, where everyone on that network may read and write every queue, write\n    [access]\n"
                + "\n".join(f"    {key} = true" for key in missing)
            )
    both = set(settings.stomp.listen) & set(settings.http.listen)
    problems += [
        f"stomp.listen and http.listen both have {address}"
        for address in sorted(both, key=str)
        if address.port
    ]
