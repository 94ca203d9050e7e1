"""What is fuzzed: for each target a function of some bytes that holds a promise, and bytes to begin with.

`run(data)` returns a short description of what happened, the same for the same bytes: a fuzzer keeps inputs
that led to a new one. It raises where the promise was broken, and whatever a bug raises.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from broker.config import load
from broker.config.settings import Settings, keys
from broker.errors import BadEscape, ConfigError, DataDamaged, FormatNotKnown, ProtocolError
from broker.journal.records import decode, skim
from broker.stomp import Parser, Role, Version, WireLimits, encode, escape, unescape
from tests.fuzz import forge, logs
from tests.fuzz.forge import Broken
from tests.stomp.frames import STEERING, VERSIONS, flat, pieces
from tests.stomp.streams import Stream

CORPUS: Final = Path(__file__).resolve().parent / "corpus"
INPUT_BYTES_MAX: Final = 6000


@dataclass(frozen=True)
class Target:
    name: str
    promise: str
    run: Callable[[bytes], str]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()  # what a random mutation would not come upon

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name


def outline(error: Exception) -> str:
    """An error without the numbers and names in its text: its kind."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|0x[0-9a-f]+|[0-9]+|/\S+", "#", str(error))
    return f"{type(error).__name__} {text[:90]}"


# --------------------------------------------------------------------------------------------------- the wire

SMALL = WireLimits(preauth_frame=60, header_line=30, headers=4, header_block=80, body=60)
WORDS = (
    b"SEND\n", b"ACK\n", b"CONNECT\n", b"MESSAGE\n", b"SUBSCRIBE\n", b"BEGIN\n", b"\n\n", b"\r\n\r\n", b"\0",
    b"content-length:", b"content-length:3\n", b"destination:/queue/a\n", b"receipt:1\n", b"id:1\n",
    b"transaction:t\n", b"persistent:false\n", b"\\c", b"\\n", b"\\r", b"\\\\", b"\\t", b"\xff", b"\r", b":",
    b"SEND\ndestination:/queue/a\n\nhi\0", b"ACK\nid:1\n\n\0", b"ACK\nsubscription:0\nid:5\n\n\0",
)  # fmt: skip


def run_frames(data: bytes) -> str:
    """Byte 0: version, role, greeted, limits; byte 1: size of the pieces; then what the peer sends."""
    if len(data) < 2:
        return "short"
    how, size, wire = data[0], data[1] % 61 + 1, data[2:]
    outcomes = []
    cut = len(wire) // 3
    for parts, fast in (
        ([wire], True),
        ([wire], False),
        (pieces(wire, range(size, len(wire), size)), True),
        ([wire[:cut], wire[cut:]], True),
        (pieces(wire, range(1, len(wire))), True),
    ):
        parser = Parser(SMALL if how & 16 else WireLimits(), steering=STEERING, role=Role.SERVER)
        if how & 8:
            parser = Parser(SMALL if how & 16 else WireLimits(), role=Role.CLIENT)
        parser._fast = fast
        items = []
        if how & 4 and not how & 8:
            parts = [b"CONNECT\n\n\0", *parts]
        for part in parts:
            items += parser.feed(part)
            while parser._paused:  # behind a CONNECT, until the owner has chosen the version
                parser.version = VERSIONS[how % 3]
                items += parser.resume()
        outcomes.append((flat(items), parser.held, parser.mid_frame))
    for other in outcomes[1:]:
        if other != outcomes[0]:
            raise Broken(f"the same bytes in other pieces gave {other}, not {outcomes[0]}")
    kinds = {one[0] if isinstance(one, tuple) else one.__name__ for one in outcomes[0][0]}
    last = items[-1] if items else None
    why = outline(last) if isinstance(last, ProtocolError) else ""
    return f"{how % 32} {sorted(kinds)} {why} {len(items).bit_length()} {outcomes[0][2]}"


def seed_frames() -> list[bytes]:
    found = [bytes([VERSIONS.index(stream.version) | 4, 7]) + stream.wire[:600] for stream in map(Stream, range(12))]
    found += [bytes([2, 3]) + b"CONNECT\naccept-version:1.2\n\n\0SEND\ndestination:/queue/a\n\nx\0"]
    found += [bytes([8 + version, 5]) + b"CONNECTED\nversion:1.1\n\n\0MESSAGE\nx:y\n\nz\0\n" for version in range(3)]
    return found


def run_escapes(data: bytes) -> str:
    """Byte 0: version; then a text: as raw header bytes from a peer, and as a value that we write."""
    if not data:
        return "short"
    version = VERSIONS[data[0] % 3]
    text = data[1:].decode("utf-8", "replace")
    try:
        meant = unescape(text, version)
        said = "taken"
    except BadEscape as error:
        meant, said = text, outline(error)
    if version is not Version.V1_0 and unescape(escape(meant, version), version) != meant:
        raise Broken(f"{meant!r} does not come back from its escaped form in {version}")
    if version is not Version.V1_0 and re.search(r"[\n:]", escape(meant, version)):
        raise Broken(f"{escape(meant, version)!r} would end a header's line or name")
    parser = Parser(WireLimits(header_line=1 << 20, header_block=1 << 22), role=Role.CLIENT)
    parser.feed(f"CONNECTED\nversion:{version}\n\n\0".encode())
    items = parser.feed(encode(version, "MESSAGE", [(meant, "value"), ("name", meant), ("last", "z")], b"body\0"))
    if len(items) != 1 or isinstance(items[0], ProtocolError):
        raise Broken(f"a header {meant!r} in {version} made {items} of one frame")
    headers = items[0].headers  # type: ignore[union-attr]
    if headers.get("last", "z") != "z" or not set(headers) <= {
        meant,
        meant.strip(" "),
        "name",
        "last",
        "content-length",
    }:
        raise Broken(f"a header {meant!r} in {version} made headers {headers}")
    return f"{version} {said} {len(headers)} {'name' in headers}"


def seed_escapes() -> list[bytes]:
    texts = (b"plain", b"a\\nb\\cc\\\\d\\re", b"\\t", b"\\", b"a\nb:c\r\n\n\0", b"\xe2\x80\xa8 \xff", b" spaces ")
    return [bytes([version]) + text for version in range(3) for text in texts]


# ------------------------------------------------------------------------------------------------ the records


def run_records(data: bytes) -> str:
    """Byte 0: the record's type; then its payload."""
    if not data:
        return "short"
    kind, payload = data[0] % 16, data[1:]
    results = []
    for function in (decode, skim):
        # Somewhere in a buffer, as in the log: nothing around it may make a difference.
        around = b"\xaa" * 8 + payload + b"\xbb" * 64
        try:
            results.append(function(kind, around, 8, 8 + len(payload)))
        except (DataDamaged, FormatNotKnown) as error:
            results.append(outline(error))
    decoded, skimmed = results
    if isinstance(decoded, str) or isinstance(skimmed, str):
        if decoded != skimmed:
            raise Broken(f"decode says {decoded}, skim says {skimmed}")
        return f"{kind} {decoded}"
    logs.hold_skim(decoded, skimmed)
    logs.hold_round_trip(kind, decoded)
    return f"{kind} {[(int(part), type(value).__name__) for part, value in decoded][:4]}"


def seed_records() -> list[bytes]:
    return [bytes([kind]) + payload for kind, payload in forge.every_record()]


# ------------------------------------------------------------------------------------------ the configuration


KINDS: Final = (
    " is not UTF|there is no such (key|section)|expected .*|not TOML.*|is a section|may be at most|could reach"
)


@cache
def _config_path() -> str:
    descriptor, path = tempfile.mkstemp(suffix=".toml", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    os.close(descriptor)
    return path


def run_config(data: bytes) -> str:
    """A TOML file; behind a line `#env` the lines NAME=VALUE of an environment."""
    toml, _, variables = data.partition(b"\n#env\n")
    lines = variables.decode("utf-8", "surrogateescape").split("\n")
    environ = {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
    path = _config_path()
    Path(path).write_bytes(toml)
    try:
        settings = load(path, environ, {})
    except ConfigError as error:
        first = str(error).split("\n")[0].replace(path, "")
        if path not in str(error) and "variable" not in str(error):
            raise Broken(f"the refusal does not say where: {error}") from error
        what = re.search(KINDS, first)
        return re.sub(r"'.*'|[0-9]+|at most.*", "#", what[0] if what else "other")[:60]
    for key in keys():
        value = settings.get(key.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and not key.low <= value <= key.high:
            raise Broken(f"{key.name} = {value} was taken, {key.low} to {key.high} are allowed")
    if not isinstance(settings, Settings):
        raise Broken(f"{type(settings)} came instead of settings")
    return f"taken {len(settings.origins)}"


def seed_config() -> list[bytes]:
    found = [
        b'data_dir = "x"\n[storage]\nsegment_size = "1MiB"\nfsync = "always"\n',
        b'[limits]\nbody = "64KiB"\nlogin_deadline = "500ms"\nconnections = 7\n',
        b'[stomp]\nlisten = ["127.0.0.1:61613", "[::1]:1"]\n[http]\nlisten = []\n',
        b'[stomp]\nlisten = ["0.0.0.0:61613"]\n[access]\nanonymous = true\ni_accept_plaintext = true\n',
        b"[memory]\nlimit = 104857600\n",
        b"[memory\n", b"data_dir = 1\n", b"[limit]\nx = 1\n", b"stomp = 1\n", b"\xff", b"a.b.c = [{x = 1}]\n",
        b"[memory]\nlimit = 0x" + b"f" * 200 + b"\n",
        b"\n#env\nSTOMPD_DATA_DIR=/x\nSTOMPD_LIMITS__BODY=1MiB\nSTOMPD_STORAGE__FSYNC=sometimes\n",
    ]  # fmt: skip
    return found


CONFIG_WORDS = (
    *[f"{key.name.rpartition('.')[2]} = ".encode() for key in keys()],
    b"[limits]\n", b"[storage]\n", b"[memory]\n", b"[stomp]\n", b"[http]\n", b"[access]\n", b"[log]\n", b'"64MiB"',
    b'"10s"', b'"500ms"', b"true", b"1979-05-27T07:32:00Z", b"'''", b'"""', b"[[x]]", b"{a = 1}", b"nan", b"-inf",
    b"\n#env\n", b"STOMPD_", b"\\u0000", b"9" * 30, b"[" * 50, b"[" * 600, b"9" * 4400, b"0x" + b"f" * 4000,
)  # fmt: skip

_FRAMES = "any bytes in any pieces are frames, or one error at the end"
_ESCAPES = "a header is read back as it was meant, and can forge no other"
_RECORDS = "a payload is a value, or damaged, or of a newer version"
_SEGMENTS = "a damaged log is refused, or gives only what was written"
_READER = "a damaged record is never taken for another one"
_WALK = "each record of a damaged log is there as it was written, or in a gap that is named"
_CHECKPOINT = "a damaged checkpoint is doubted, never half read"
_CONFIG = "a text is settings within their bounds, or a refusal that says where"
TARGETS: Final = {
    target.name: target
    for target in (
        Target("frames", _FRAMES, run_frames, seed_frames, WORDS),
        Target("escapes", _ESCAPES, run_escapes, seed_escapes, WORDS),
        Target("records", _RECORDS, run_records, seed_records),
        Target("segments", _SEGMENTS, logs.run_segments, forge.seed_edits),
        Target("reader", _READER, logs.run_reader, forge.seed_edits),
        Target("walk", _WALK, logs.run_walk, forge.seed_edits),
        Target("checkpoint", _CHECKPOINT, logs.run_checkpoint, forge.seed_edits),
        Target("config", _CONFIG, run_config, seed_config, CONFIG_WORDS),
    )
}
