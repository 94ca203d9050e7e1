"""Frames to bytes: no header may become another one, or a frame, in any version."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.errors import BadEscape, BadHeader
from broker.stomp import (
    Frame,
    Parser,
    Role,
    Version,
    WireLimits,
    canonical_lines,
    choose_version,
    encode,
    escape,
    lines_for,
    parse_heart_beat,
    parse_number,
    unescape,
)
from tests.stomp.frames import VERSIONS, client

V1_0, V1_1, V1_2 = VERSIONS
ROOMY = WireLimits(header_line=1 << 16, header_block=1 << 20, headers=100)
LETTERS = st.one_of(st.sampled_from("\n\r\0:\\ abcnr\u2028"), st.characters(exclude_categories=["Cs"]))
NASTY = st.text(LETTERS, max_size=12)
PAIRS = st.lists(st.tuples(NASTY, NASTY), max_size=8)
quick = settings(derandomize=True, deadline=None, max_examples=300, database=None)


def sayable(name: str, value: str, version: Version, *, raw: bool = False) -> bool:
    """Whether a version can write the header at all; a model of what encode() may leave out."""
    if not name or "\0" in name + value or name == "content-length":
        return False
    if raw or version is V1_0:
        return ":" not in name and not set("\r\n") & set(name + value) and bool(name.strip(" "))
    return True


def expected(pairs: list[tuple[str, str]], version: Version) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        if sayable(name, value, version):
            if version is V1_0:
                name, value = name.strip(" "), value.strip(" ")
            found.setdefault(name, value)
    return found


@quick
@given(pairs=PAIRS, version=st.sampled_from(VERSIONS), body=st.binary(max_size=30))
@example(pairs=[("x", "a\nb:1")], version=V1_0, body=b"")
@example(pairs=[("x", "a\n\n\0MESSAGE\nforged:1\n")], version=V1_2, body=b"\0")
def test_what_is_written_is_read_back_as_one_frame_with_the_same_headers(
    pairs: list[tuple[str, str]], version: Version, body: bytes
) -> None:
    pairs = [pair for pair in pairs if pair[0] not in ("receipt", "destination")]
    items = client(version, ROOMY).feed(encode(version, "MESSAGE", pairs, body))
    headers = expected(pairs, version)
    if body:
        headers["content-length"] = str(len(body))
    assert items == [Frame("MESSAGE", headers, body)]


@quick
@given(pairs=PAIRS, command=st.sampled_from(["CONNECT", "CONNECTED"]))
def test_connect_and_connected_are_written_without_escapes_and_cannot_be_forged(
    pairs: list[tuple[str, str]], command: str
) -> None:
    pairs = [("accept-version" if command == "CONNECT" else "version", "1.2"), *pairs]
    pairs = [pair for pair in pairs if pair[0] not in ("receipt", "destination")]
    parser = Parser(ROOMY, role=Role.SERVER if command == "CONNECT" else Role.CLIENT)
    headers: dict[str, str] = {}
    for name, value in pairs:
        if sayable(name, value, V1_2, raw=True):
            headers.setdefault(name, value)
    assert parser.feed(encode(V1_2, command, pairs)) == [Frame(command, headers)]


@quick
@given(pairs=PAIRS, version=st.sampled_from(VERSIONS))
def test_stored_lines_reach_every_version_or_are_counted(
    pairs: list[tuple[str, str]], version: Version
) -> None:
    pairs = [pair for pair in pairs if pair[0] not in ("receipt", "destination")]
    stored = canonical_lines(pairs)
    lines, dropped = lines_for(version, stored)
    headers = expected(pairs, version)
    assert client(version, ROOMY).feed(b"MESSAGE\n" + lines + b"\n\0") == [Frame("MESSAGE", headers)]
    lost = [pair for pair in pairs if sayable(*pair, V1_2) and not sayable(*pair, version)]
    assert dropped == len(lost)


@quick
@given(value=NASTY, version=st.sampled_from(VERSIONS))
def test_unescape_undoes_escape(value: str, version: Version) -> None:
    assert unescape(escape(value, version), version) == value


@pytest.mark.parametrize(
    ("version", "value", "written"),
    [
        (V1_0, "a:\\\n\r", "a:\\\n\r"),
        (V1_1, "a:\\\n\r", "a\\c\\\\\\n\r"),
        (V1_2, "a:\\\n\r", "a\\c\\\\\\n\\r"),
    ],
)
def test_each_version_has_its_own_escapes(version: Version, value: str, written: str) -> None:
    assert escape(value, version) == written


@pytest.mark.parametrize("raw", ["\\", "a\\", "\\t", "\\x41", "\\\\\\", "\\N", "\\:", "\\\n"])
def test_an_undefined_escape_is_refused_and_named(raw: str) -> None:
    for version in (V1_1, V1_2):
        with pytest.raises(BadEscape, match=f"STOMP {version}"):
            unescape(raw, version)
    with pytest.raises(BadEscape):
        unescape("\\r", V1_1)


def test_escapes_are_undone_once() -> None:
    assert unescape("\\\\n", V1_2) == "\\n"
    assert unescape("\\\\\\n", V1_2) == "\\\n"


def test_a_frame_is_written_byte_by_byte_as_the_specification_says() -> None:
    pairs = [("destination", "/queue/a"), ("x:y", "1\n2")]
    assert encode(V1_2, "MESSAGE", pairs, b"hi") == (
        b"MESSAGE\ndestination:/queue/a\nx\\cy:1\\n2\ncontent-length:2\n\nhi\0"
    )
    assert encode(V1_0, "MESSAGE", pairs, b"hi") == b"MESSAGE\ndestination:/queue/a\ncontent-length:2\n\nhi\0"
    assert encode(V1_2, "RECEIPT", [("receipt-id", "7")]) == b"RECEIPT\nreceipt-id:7\n\n\0"


def test_content_length_is_the_encoders_own() -> None:
    assert encode(V1_2, "SEND", [("content-length", "99")], b"hi") == b"SEND\ncontent-length:2\n\nhi\0"
    assert encode(V1_2, "SEND", [("content-length", "99")]) == b"SEND\n\n\0"


@pytest.mark.parametrize(
    ("stored", "version", "lines", "dropped"),
    [
        (b"a:b\n", V1_0, b"a:b\n", 0),
        (b"a:x\\cy\n", V1_0, b"a:x:y\n", 0),
        (b"a:x\\\\ny\n", V1_0, b"a:x\\ny\n", 0),
        (b"a:x\\ny\nb:1\\c\n", V1_0, b"b:1:\n", 1),
        (b"a:x\\ry\n", V1_0, b"", 1),
        (b"a\\cb:x\n", V1_0, b"", 1),
        (b"a:\\\\r\\r\\n\n", V1_1, b"a:\\\\r\r\\n\n", 0),
        (b"a:\\\\r\\r\\n\n", V1_2, b"a:\\\\r\\r\\n\n", 0),
        (b"", V1_0, b"", 0),
    ],
)
def test_stored_lines_are_put_into_each_version(
    stored: bytes, version: Version, lines: bytes, dropped: int
) -> None:
    assert lines_for(version, stored) == (lines, dropped)


@pytest.mark.parametrize(
    ("accepted", "version"),
    [
        (None, V1_0),
        ("1.0", V1_0),
        ("1.0,1.1", V1_1),
        ("1.2,1.0,1.1", V1_2),
        ("2.0,1.1", V1_1),
        (" 1.1 , 1.0 ", V1_1),
        ("1.2,", V1_2),
        ("", None),
        ("2.0", None),
        ("1.20", None),
        ("1.1\n", None),
        ("1", None),
    ],
)
def test_the_highest_common_version_is_chosen(accepted: str | None, version: Version | None) -> None:
    assert choose_version(accepted) is version


@pytest.mark.parametrize(
    ("value", "pair"), [("0,0", (0, 0)), ("999999999,1", (999999999, 1)), ("010,5", (10, 5))]
)
def test_a_heart_beat_is_two_numbers(value: str, pair: tuple[int, int]) -> None:
    assert parse_heart_beat(value) == pair


@pytest.mark.parametrize(
    "value",
    [
        "",
        "1",
        "1,",
        ",1",
        "1,2,3",
        "-1,0",
        "1, 2",
        " 1,2",
        "1,2\n",
        "1e3,0",
        "1_0,0",
        "\u0663,0",
        "1" * 10 + ",0",
    ],
)
def test_any_other_heart_beat_is_refused(value: str) -> None:
    with pytest.raises(BadHeader, match="heart-beat"):
        parse_heart_beat(value)


@pytest.mark.parametrize(("value", "number"), [("5", 5), ("005", 5), ("0", 0), ("-3", -3), ("10", 10)])
def test_a_number_is_read_within_its_bounds(value: str, number: int) -> None:
    assert parse_number({"n": value}, "n", -3, 10) == number
    assert parse_number({}, "n", -3, 10) is None


@pytest.mark.parametrize(
    "value",
    ["", "11", "-4", "soon", "1.5", "+5", " 5", "5 ", "1_0", "\u0663", "²", "5\n", "--5", "0x5", "9" * 5000],
)
def test_a_number_that_does_not_parse_is_refused_by_name_and_value(value: str) -> None:
    with pytest.raises(BadHeader, match="prefetch must be a whole number from -3 to 10, got") as refused:
        parse_number({"prefetch": value}, "prefetch", -3, 10)
    assert len(str(refused.value)) < 200
