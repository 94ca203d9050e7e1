"""Names of destinations: what a client may write, and what it means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from broker.errors import DestinationRefused, shown


class Kind(Enum):
    QUEUE = "/queue/"
    TOPIC = "/topic/"
    TEMP_QUEUE = "/temp-queue/"


@dataclass(frozen=True, slots=True)
class Destination:
    kind: Kind
    name: str  # in full and canonical, e.g. "/queue/orders", whichever alias the client used


ALIASES: Final = {
    "/amq/queue/": Kind.QUEUE,
    "/exchange/amq.topic/": Kind.TOPIC,
    "/exchange/amq.direct/": Kind.TOPIC,
}
DEAD_LETTER_PREFIX: Final = "/queue/DLQ."
_GLOBAL_TEMPORARY: Final = re.compile(r"[0-9a-f]{16}\.")


def parse(text: str, *, multicast: bool, longest: int) -> Destination:
    """The destination that `text` means; `longest` bytes at most. features.md, "Destinations".

    `multicast`: whether a name with no leading slash is a topic (Artemis' `destination-type:MULTICAST`).
    Raises DestinationRefused.
    """
    if len(text.encode()) > longest:
        size = len(text.encode())
        raise DestinationRefused(f"destination has {size} bytes, limits.destination_name allows {longest}")
    if not text:
        raise DestinationRefused("destination is empty, expected /queue/NAME, /topic/NAME or /temp-queue/NAME")
    if not text.startswith("/"):
        return Destination(Kind.TOPIC, f"/topic/{text}") if multicast else Destination(Kind.QUEUE, f"/queue/{text}")
    for kind in Kind:
        if text.startswith(kind.value):
            return _named(kind, text, text.removeprefix(kind.value))
    for alias, kind in ALIASES.items():
        if text.startswith(alias):
            return _named(kind, text, text.removeprefix(alias))
    raise DestinationRefused(f"expected /queue/NAME, /topic/NAME or /temp-queue/NAME, got {shown(text)}")


def _named(kind: Kind, text: str, rest: str) -> Destination:
    if not rest:
        raise DestinationRefused(f"the name is missing in {shown(text)}")
    if ",/" in rest:
        raise DestinationRefused(f"several destinations in one ({shown(text)}) are not served by this version")
    return Destination(kind, kind.value + rest)


def check_topic_name(name: str) -> None:
    """A topic that a SEND may name. Raises DestinationRefused for wildcards and for `$` topics."""
    words = name.removeprefix(Kind.TOPIC.value).split(".")
    if any(word in ("*", "#", ">") for word in words):
        raise DestinationRefused(f"a SEND needs the name of one topic, {shown(name)} has a wildcard")
    if words[0].startswith("$"):
        raise DestinationRefused(f"topics that begin with $ are the broker's own: {shown(name)} takes no SEND")


def check_pattern(name: str) -> None:
    """A topic pattern that a SUBSCRIBE may name. Raises DestinationRefused where `>` is not last."""
    words = name.removeprefix(Kind.TOPIC.value).split(".")
    if ">" in words[:-1]:
        raise DestinationRefused(f"the wildcard > may only stand last, in {shown(name)} it does not; use #")


def check_queue_name(name: str) -> None:
    """A queue has one name. Raises DestinationRefused for wildcards on queues."""
    words = name.removeprefix(Kind.QUEUE.value).split(".")
    if any(word in ("*", "#", ">") for word in words):
        raise DestinationRefused(f"wildcards are for topics, {shown(name)} is a queue")


def matches(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether a topic's words match a pattern's: `*` one word, `#` (or a last `>`) zero or more.

    At most one step back per `#`, so the cost is bounded by len(pattern) x len(words), whatever the pattern.
    """
    if words[0].startswith("$") and not pattern[0].startswith("$"):
        return False
    at, word = 0, 0
    retry_at, retry_word = -1, 0
    while word < len(words):
        if at < len(pattern) and pattern[at] in ("#", ">"):
            retry_at, retry_word = at, word
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", words[word]):
            at += 1
            word += 1
        elif retry_at >= 0:
            retry_word += 1
            at, word = retry_at + 1, retry_word
        else:
            return False
    return all(rest in ("#", ">") for rest in pattern[at:])


def temporary_name(token: str, local: str) -> str:
    """The name under which others reach the temporary queue `local` of the connection with that token.

    `local` may be such a name already (a reply-to that is handed on): it stays as it is.
    """
    rest = local.removeprefix(Kind.TEMP_QUEUE.value)
    if _GLOBAL_TEMPORARY.match(rest):
        return Kind.TEMP_QUEUE.value + rest
    return f"{Kind.TEMP_QUEUE.value}{token}.{rest}"
