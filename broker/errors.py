"""What can go wrong, as types: whose fault it is, what it says, which exit code or ERROR it becomes."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """Exit codes of the command line (docs/operations.md says what to do about each)."""

    OK = 0
    USAGE = 64
    DAMAGED = 65
    ADDRESS_IN_USE = 69
    UNAVAILABLE = 69  # the same to a script: the broker cannot be talked to
    BUG = 70
    STORAGE_FAILED = 74
    DATA_DIR_IN_USE = 75
    CONFIG_REFUSED = 78


class StompdError(Exception):
    """Everything that stompd raises on purpose. `exit_code` is what the process ends with where nobody handles it."""

    exit_code = Exit.BUG


class UsageError(StompdError):
    """The command line was wrong; the text says what was expected."""

    exit_code = Exit.USAGE


class ConfigError(StompdError):
    """The configuration is refused; the text names file, key, value, what is allowed and the nearest key."""

    exit_code = Exit.CONFIG_REFUSED


class AddressInUse(StompdError):
    """A listener could not be opened."""

    exit_code = Exit.ADDRESS_IN_USE


class DataDirInUse(StompdError):
    """Another process holds the lock of the data folder."""

    exit_code = Exit.DATA_DIR_IN_USE


class FormatNotKnown(StompdError):
    """The data folder was written by a newer stompd; nothing in it was touched."""

    exit_code = Exit.CONFIG_REFUSED


class DataDamaged(StompdError):
    """Receipted data is damaged or missing: the start is refused, nothing is skipped. The text says where."""

    exit_code = Exit.DAMAGED


class CheckpointDoubted(StompdError):
    """Something is wrong with a checkpoint. It is not used: the log says the same, only slower."""


class StorageFailed(StompdError):
    """The medium refused a write or a sync. No receipt leaves after this; the process ends and a restart decides."""

    exit_code = Exit.STORAGE_FAILED


class ProtocolError(StompdError):
    """The peer's fault: it gets an ERROR frame with `summary` as its `message`, then the connection is closed.

    `summary` is a fixed text of the class and safe to send to a stranger; `str(error)` is the detail (what was
    expected, what came, where) for the log and, once the peer is logged in, for the body of the ERROR.
    """

    summary = "protocol error"


class BadFrame(ProtocolError):
    """The bytes are no STOMP frame: wrong command, a missing NUL, a body where none may be."""

    summary = "malformed frame"


class NotStomp(BadFrame):
    """The first bytes of a connection begin neither CONNECT nor STOMP. `hint` is "http", "tls" or ""."""

    summary = "not a STOMP connection"

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.hint = hint


class BadHeader(ProtocolError):
    """A header is malformed, repeated with another value where that is refused, or its value is not allowed."""

    summary = "bad header"


class BadEscape(BadHeader):
    """An undefined escape sequence (STOMP 1.2, "Value Encoding")."""

    summary = "undefined escape sequence in a header"


class HeaderTooLong(ProtocolError):
    """A header line, the header block or the number of headers is over its limit."""

    summary = "headers too long"


class BodyTooLong(ProtocolError):
    """The body is over limits.body."""

    summary = "body too long"


class NotAllowedNow(ProtocolError):
    """A known command in a state that does not take it, e.g. SEND before CONNECT."""

    summary = "command not allowed here"


class VersionRefused(ProtocolError):
    """No common protocol version (STOMP 1.2, "Protocol Negotiation")."""

    summary = "no common STOMP version"


class LimitReached(ProtocolError):
    """A limit of the broker that counts things (subscriptions, transactions, queues) is reached."""

    summary = "limit reached"


class UnknownName(ProtocolError):
    """A subscription, transaction or message that the frame names is not known on this connection."""

    summary = "unknown id"


class DestinationRefused(ProtocolError):
    """The destination is no name that this broker serves."""

    summary = "bad destination"


class QueueDamaged(ProtocolError):
    """A message of the queue is damaged on disk; it is not skipped, so the queue hands out nothing more."""

    summary = "queue is damaged"


class HeldTooLong(ProtocolError):
    """A SEND could not be admitted: the memory budget is used up and stayed so."""

    summary = "broker is over its memory limit"


class DiskFull(HeldTooLong):
    """The same for the disk: what is left of it is for those who acknowledge."""

    summary = "broker has no room on its disk"


class Unreachable(StompdError):
    """A command could not connect to the broker. The text names the address and what to try."""

    exit_code = Exit.UNAVAILABLE


class ConnectionLost(StompdError):
    """The broker went away, or stopped answering, in the middle of a command. The text says what is now unsure."""

    exit_code = Exit.UNAVAILABLE


class RefusedByBroker(StompdError):
    """The broker answered a command's frame with ERROR. `receipt_id` is that frame's receipt, where it had one."""

    exit_code = Exit.UNAVAILABLE

    def __init__(self, detail: str, receipt_id: str | None = None) -> None:
        super().__init__(detail)
        self.receipt_id = receipt_id


NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))


class NoRoom(OSError):
    """The disk is full, and so is what was kept for that. Nothing has failed: the same may be tried again."""


def no_room(error: OSError) -> bool:
    """Whether an error of the disk says that it is full, which is no failure of it."""
    return error.errno in NO_ROOM


# Of us or of the moment, and not of the medium: the same call may succeed later.
PASSING: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN))


def passing(error: OSError) -> bool:
    """Whether an error of the disk says nothing against the disk."""
    return error.errno in PASSING


def shown(value: str | bytes) -> str:
    """A peer's text as an error may quote it: ASCII only, 64 characters at most, in quotes."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    quoted = ascii(text[:64])
    return quoted if len(text) <= 64 else quoted + "..."
