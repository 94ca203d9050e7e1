"""How SENDs and ACKs are grouped: what the session's speed rests on."""

from __future__ import annotations

import pytest

from broker.stomp import AckRun, SendRun, Version
from broker.stomp.half import Item
from tests.stomp.frames import VERSIONS, flat, opened


def sends(items: list[Item]) -> list[SendRun]:
    assert all(isinstance(item, SendRun) for item in items)
    return [item for item in items if isinstance(item, SendRun)]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("between", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("length", [b"", b"content-length:2\n"])
def test_sends_that_differ_in_their_receipts_are_one_run(
    version: Version, between: bytes, length: bytes
) -> None:
    frame = b"SEND\ndestination:/q\nreceipt:%d\n" + length + b"\nhi\0" + between
    wire = b"".join(frame % i for i in range(200))
    (run,) = sends(opened(version).feed(wire))
    assert run.receipts == [b"%d" % i for i in range(200)]
    assert run.owns is None
    assert run.bodies == [b"hi"] * 200
    assert run.block.headers == {"destination": "/q"}


def test_a_run_has_at_most_256_messages() -> None:
    wire = b"SEND\ndestination:/q\n\nhi\0" * 1000
    runs = sends(opened().feed(wire))
    assert sum(len(run.bodies) for run in runs) == 1000
    assert max(len(run.bodies) for run in runs) == 256
    assert len(runs) <= 6
    assert len({id(run.block) for run in runs}) == 1


def test_a_header_that_varies_becomes_each_messages_own_line() -> None:
    wire = b"".join(b"SEND\ndestination:/q\nid:j%d\nb:x\nn:%d\n\nhi\0" % (i, i * i) for i in range(100))
    first, rest = sends(opened().feed(wire))
    assert (first.owns, first.block.headers) == (None, {"destination": "/q", "id": "j0", "b": "x", "n": "0"})
    assert rest.block.headers == {"destination": "/q", "b": "x"}
    assert rest.owns == [b"id:j%d\nn:%d\n" % (i, i * i) for i in range(1, 100)]


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_own_lines_are_canonical_whatever_the_sender_speaks(version: Version) -> None:
    raw = {Version.V1_0: "a:b\\", Version.V1_1: "a:b\\\\\r", Version.V1_2: "a:b\\\\\\r"}[version]
    own = {Version.V1_0: b"x:a\\cb\\\\\n"}.get(version, b"x:a\\cb\\\\\\r\n")
    wire = b"".join(b"SEND\ndestination:/q\nx:%d\n\n\0" % i for i in range(20))
    wire += f"SEND\ndestination:/q\nx:{raw}\n\n\0".encode() * 2 + b"SEND\ndestination:/q\nx:7:7\n\n\0"
    runs = sends(opened(version).feed(wire))
    assert runs[-1].owns is not None
    assert runs[-1].owns[-3:] == [own, own, b"x:7\\c7\n"]
    assert len(runs) == 2


def test_a_name_of_an_own_line_is_escaped_too() -> None:
    wire = b"".join(b"SEND\na\\c%%:%d\n\n\0" % i for i in range(50))
    runs = sends(opened().feed(wire))
    assert runs[-1].owns == [b"a\\c%%:%d\n" % i for i in range(1, 50)]


@pytest.mark.parametrize("name", ["destination", "transaction", "persistent"])
def test_what_steers_is_never_an_own_line(name: str) -> None:
    wire = "".join(f"SEND\n{name}:{i // 10}\nreceipt:{i}\n\n\0" for i in range(60)).encode()
    runs = sends(opened().feed(wire))
    assert [run.owns for run in runs] == [None] * 6
    assert [run.block.headers for run in runs] == [{name: str(i)} for i in range(6)]


def test_a_frame_with_a_repeated_name_has_no_own_lines() -> None:
    wire = b"".join(b"SEND\nx:%d\nx:%d\n\n\0" % (i, i + 1) for i in range(10))
    runs = sends(opened().feed(wire))
    assert [run.owns for run in runs] == [None] * 10
    assert runs[3].block.lines == [("x", "3"), ("x", "4")]


def test_receipts_and_none_are_not_mixed_in_a_run() -> None:
    pair = b"SEND\ndestination:/q\n\n1\0SEND\ndestination:/q\nreceipt:7\n\n2\0"
    runs = sends(opened().feed(pair * 3))
    assert [run.receipts for run in runs] == [None, [b"7"]] * 3


def test_sizes_that_vary_do_not_end_a_run() -> None:
    wire = b"".join(b"SEND\ndestination:/q\ncontent-length:%d\n\n%s\0" % (i, b"\0" * i) for i in range(200))
    (run,) = sends(opened().feed(wire))
    assert run.bodies == [b"\0" * i for i in range(200)]


def test_a_run_goes_on_behind_a_frame_that_was_cut() -> None:
    frame = b"SEND\ndestination:/q\nreceipt:%d\ncontent-length:100\n\n" + b"x" * 100 + b"\0"
    wire = b"".join(frame % i for i in range(50))
    parser = opened()
    assert len(parser.feed(wire[:2000])) == 1
    (run,) = sends(parser.feed(wire[2000:]))
    assert run.receipts is not None and run.receipts[-1] == b"49"


@pytest.mark.parametrize(
    "lines", [b"id:%d\n", b"subscription:0\nid:%d\n", b"message-id:%d\nsubscription:0\n"]
)
@pytest.mark.parametrize("between", [b"", b"\n"])
@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_acks_that_differ_in_the_id_are_one_run(lines: bytes, between: bytes, version: Version) -> None:
    count = 3000
    wire = b"".join(b"ACK\n" + lines % i + b"\n\0" + between for i in range(count))
    (run,) = opened(version).feed(wire)
    assert isinstance(run, AckRun)
    assert run.ids == [b"%d" % i for i in range(count)]
    assert run.headers == ({"subscription": "0"} if b"subscription" in lines else {})


def test_acks_of_other_subscriptions_are_other_runs() -> None:
    wire = b"".join(b"ACK\nsubscription:%d\nid:%d\n\n\0" % (i // 5 % 2, i) for i in range(20))
    items = opened().feed(wire)
    assert [item.headers for item in items if isinstance(item, AckRun)] == [
        {"subscription": str(i % 2)} for i in range(4)
    ]
    assert sum(len(item.ids) for item in items if isinstance(item, AckRun)) == 20


def test_an_odd_ack_in_the_middle_is_taken_in_its_place() -> None:
    good = b"".join(b"ACK\nid:%d\n\n\0" % i for i in range(50))
    odd = b"ACK\nid:a\\cb\n\n\0" + b"ACK\nid:7\nreceipt:1\n\n\0"
    found = flat(opened().feed(good + odd + good))
    assert [one[1][-1][1] for one in found if isinstance(one, tuple)][50:53] == ["a:b", "1", "0"]
    assert len(found) == 102


def test_after_a_time_of_frames_unlike_each_other_the_fast_path_comes_back() -> None:
    parser = opened()
    for number in range(2000):
        parser.feed(f"SEND\nreceipt:{number}\ndestination:/queue/{number * 7919 % 100}\n\n\0".encode())
    memory = parser._memory
    assert memory is not None and memory._credit < 0
    parser.feed(b"SEND\nx:1\ndestination:/queue/other\n\n\0" * 5000)
    assert memory._credit > 0


def test_a_header_that_has_varied_stays_an_own_line() -> None:
    frames = [b"SEND\nx:%d\ny:0\n\n\0" % i for i in range(5)] + [
        b"SEND\nx:9\ny:%d\n\n\0" % i for i in range(5)
    ]
    runs = sends(opened().feed(b"".join(frames)))
    assert [own for run in runs for own in run.owns or ()][-4:] == [b"x:9\ny:%d\n" % i for i in range(1, 5)]


def test_lines_that_only_look_alike_when_joined_are_other_blocks() -> None:
    wire = b"SEND\na:b\nc:d\n\n\0SEND\na:bc:d\n\n\0SEND\na:b\nc:d\n\n\0"
    assert [run.block.headers for run in sends(opened().feed(wire))] == [
        {"a": "b", "c": "d"}, {"a": "bc:d"}, {"a": "b", "c": "d"},
    ]  # fmt: skip


@pytest.mark.parametrize("doubtful", [b" 7", b"\\", b"a b"])
def test_a_frame_that_was_cut_behind_a_doubtful_one_comes_once(doubtful: bytes) -> None:
    frame = b"SEND\ndestination:/q\nx:%s\ncontent-length:3\n\nabc\0"
    parser = opened(Version.V1_0)
    assert len(flat(parser.feed(b"".join(frame % b"%d" % i for i in range(20))))) == 20
    wire = frame % b"1" + frame % doubtful + frame % b"2"
    assert len(flat(parser.feed(wire[:-2]))) == 2
    assert flat(parser.feed(wire[-2:])) == [("SEND", (("destination", "/q"), ("x", "2")), b"abc", None)]
