"""The append-only log: records, segments, group commit, recovery (docs/journal-format.md)."""

from broker.journal.batch import Batch, StorageSettings
from broker.journal.checkpoint import Basis, CheckpointFile, Part, encode_part
from broker.journal.findings import Replayed, Summary
from broker.journal.journal import Journal
from broker.journal.reader import Damage, Reader, Record
from broker.journal.records import (
    Acked,
    Carried,
    CarriedRun,
    Delivered,
    Lost,
    Messages,
    Moved,
    RecordType,
    Returned,
    Run,
    Value,
    acked_payload,
    carried_payload,
    decode,
    delivered_payload,
    lost_payload,
    messages_payload,
    moved_payload,
    returned_payload,
    skim,
    transaction_payload,
)
from broker.journal.recovery import Log, open_log
from broker.journal.scrub import Scrub, ScrubResult
from broker.journal.segment import Segment, number_of, offset_of, place_of, segment_name
from broker.journal.space import Ballast, Room, SpaceWatch
from broker.journal.writer import Writer

__all__ = [
    "Acked", "Ballast", "Basis", "Batch", "Carried", "CarriedRun", "CheckpointFile", "Damage", "Delivered", "Journal",
    "Log", "Lost", "Messages", "Moved", "Part", "Reader", "Record", "RecordType", "Replayed", "Returned",
    "Room", "Run", "Scrub", "ScrubResult", "Segment", "SpaceWatch", "StorageSettings", "Summary", "Value", "Writer",
    "acked_payload", "carried_payload", "decode", "delivered_payload", "encode_part", "lost_payload",
    "messages_payload", "moved_payload", "number_of", "offset_of", "open_log", "place_of",
    "returned_payload", "segment_name", "skim", "transaction_payload",
]  # fmt: skip
