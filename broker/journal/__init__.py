"""The append-only log: records, segments, group commit, recovery (docs/journal-format.md)."""

from broker.journal.batch import Batch, StorageSettings
from broker.journal.journal import Journal
from broker.journal.records import (
    Acked,
    Delivered,
    Messages,
    Moved,
    RecordType,
    Returned,
    Value,
    acked_payload,
    delivered_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    transaction_payload,
)
from broker.journal.recovery import Log, Replayed, Summary, open_log
from broker.journal.segment import Segment, number_of, offset_of, place_of
from broker.journal.writer import Writer

__all__ = [
    "Acked", "Batch", "Delivered", "Journal", "Log", "Messages", "Moved", "RecordType", "Replayed",
    "Returned", "Segment", "StorageSettings", "Summary", "Value", "Writer", "acked_payload",
    "delivered_payload", "messages_payload", "moved_payload", "number_of", "offset_of", "open_log", "place_of",
    "returned_payload", "transaction_payload",
]  # fmt: skip
