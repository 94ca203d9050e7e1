"""stomp.py, as its users use it, over STOMP 1.0, 1.1 and 1.2."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.process import BrokerProcess

stomp = pytest.importorskip("stomp", reason="stomp.py is not installed")

PATIENCE = 20.0
CLASSES = {
    "1.0": "StompConnection10",
    "1.1": "StompConnection11",
    "1.2": "StompConnection12",
}
VERSIONS = tuple(CLASSES)


class Inbox:
    """A listener that keeps what came, by kind, for a test that waits for it."""

    def __init__(self) -> None:
        self.messages: queue.Queue[Any] = queue.Queue()
        self.receipts: queue.Queue[str] = queue.Queue()
        self.errors: queue.Queue[Any] = queue.Queue()
        self.lost_heart_beats = 0
        self.heart_beats: queue.Queue[None] = queue.Queue()

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_"):
            return lambda *_: None  # the many callbacks that no test here looks at
        raise AttributeError(name)

    def on_message(self, frame: Any) -> None:
        self.messages.put(frame)

    def on_receipt(self, frame: Any) -> None:
        self.receipts.put(frame.headers["receipt-id"])

    def on_error(self, frame: Any) -> None:
        self.errors.put(frame)

    def on_heartbeat(self) -> None:
        self.heart_beats.put(None)

    def on_heartbeat_timeout(self) -> None:
        self.lost_heart_beats += 1

    def message(self) -> Any:
        return self.messages.get(timeout=PATIENCE)

    def receipt(self, name: str) -> None:
        assert self.receipts.get(timeout=PATIENCE) == name


class Peer:
    """One connected stomp.py client; the calls that differ between the versions are made alike."""

    def __init__(self, address: tuple[str, int], version: str, **options: Any) -> None:
        self.version = version
        self.inbox = Inbox()
        self.connection = getattr(stomp.connect, CLASSES[version])([address], timeout=PATIENCE, **options)
        self.connection.set_listener("inbox", self.inbox)
        self.connection.connect(wait=True)

    def subscribe(self, destination: str, ack: str = "auto") -> None:
        self.connection.subscribe(destination, id="1", ack=ack, headers={"receipt": "subscribed"})
        self.inbox.receipt("subscribed")

    def send(self, destination: str, body: Any, headers: dict[str, str] | None = None, **extra: Any) -> None:
        self.connection.send(destination, body, headers={**(headers or {}), "receipt": "sent"}, **extra)
        self.inbox.receipt("sent")

    def ack(self, frame: Any, command: str = "ack", transaction: str | None = None) -> None:
        call = getattr(self.connection, command)
        extra = {"transaction": transaction} if transaction else {}
        if self.version == "1.2":
            call(frame.headers["ack"], receipt="acked", **extra)
        elif self.version == "1.1":
            call(frame.headers["message-id"], frame.headers["subscription"], receipt="acked", **extra)
        else:
            call(frame.headers["message-id"], receipt="acked", **extra)
        self.inbox.receipt("acked")

    def close(self) -> None:
        if self.connection.is_connected():
            self.connection.disconnect(receipt="bye")
        self.connection.transport.stop()


Meet = Callable[..., Peer]


@pytest.fixture
def meet(broker: BrokerProcess) -> Iterator[Meet]:
    peers: list[Peer] = []

    def make(version: str, **options: Any) -> Peer:
        peers.append(Peer(broker.address, version, **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ack", ["auto", "client", "client-individual"])
def test_send_and_receive_in_each_ack_mode(meet: Meet, name: str, version: str, ack: str) -> None:
    peer = meet(version)
    peer.subscribe(f"/queue/{name}", ack)
    for number in range(5):
        peer.send(f"/queue/{name}", f"message {number}")
    got = [peer.inbox.message() for _ in range(5)]
    assert [frame.body for frame in got] == [f"message {number}" for number in range(5)]
    if ack == "client":
        peer.ack(got[-1])
    elif ack == "client-individual":
        for frame in got:
            peer.ack(frame)
    peer.close()
    fresh = meet(version)
    fresh.send(f"/queue/{name}", "marker")
    fresh.subscribe(f"/queue/{name}")
    assert fresh.inbox.message().body == "marker"
    assert peer.inbox.errors.empty()


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_not_acknowledged_comes_again(meet: Meet, name: str, version: str) -> None:
    peer = meet(version)
    peer.subscribe(f"/queue/{name}", "client-individual")
    peer.send(f"/queue/{name}", "x")
    peer.inbox.message()
    peer.close()
    fresh = meet(version)
    fresh.subscribe(f"/queue/{name}", "client")
    again = fresh.inbox.message()
    assert (again.body, again.headers["redelivered"]) == ("x", "true")
    fresh.ack(again)


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_a_nack_brings_the_message_back(meet: Meet, name: str, version: str) -> None:
    peer = meet(version)
    peer.subscribe(f"/queue/{name}", "client-individual")
    peer.send(f"/queue/{name}", "x")
    peer.ack(peer.inbox.message(), "nack")
    again = peer.inbox.message()
    assert again.headers["delivery-count"] == "2"
    peer.ack(again)


@pytest.mark.parametrize("version", VERSIONS)
def test_transactions(meet: Meet, name: str, version: str) -> None:
    peer = meet(version)
    peer.subscribe(f"/queue/{name}")
    dropped = peer.connection.begin()
    peer.send(f"/queue/{name}", "never", transaction=dropped)
    peer.connection.abort(dropped)
    kept = peer.connection.begin()
    peer.send(f"/queue/{name}", "first", transaction=kept)
    peer.send(f"/queue/{name}", "second", transaction=kept)
    peer.connection.commit(kept, headers={"receipt": "committed"})
    assert [peer.inbox.message().body for _ in range(2)] == ["first", "second"]
    peer.inbox.receipt("committed")
    assert peer.inbox.messages.empty()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_acknowledgement_in_a_transaction(meet: Meet, name: str, version: str) -> None:
    peer = meet(version)
    peer.subscribe(f"/queue/{name}", "client-individual")
    peer.send(f"/queue/{name}", "x")
    frame = peer.inbox.message()
    aborted = peer.connection.begin()
    peer.ack(frame, transaction=aborted)
    peer.connection.abort(aborted)
    kept = peer.connection.begin()
    peer.ack(frame, transaction=kept)
    peer.connection.commit(kept, headers={"receipt": "committed"})
    peer.inbox.receipt("committed")


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_heart_beats_keep_both_sides_content(meet: Meet, version: str) -> None:
    peer = meet(version, heartbeats=(500, 500))
    for _ in range(2):
        peer.inbox.heart_beats.get(timeout=PATIENCE)
    assert peer.inbox.lost_heart_beats == 0
    assert peer.connection.is_connected()


@pytest.mark.parametrize("version", VERSIONS)
def test_binary_bodies_with_nuls(meet: Meet, name: str, version: str) -> None:
    body = bytes(range(256)) * 4 + b"\0\0\n\0"
    peer = meet(version, auto_decode=False)
    peer.subscribe(f"/queue/{name}")
    peer.send(f"/queue/{name}", body, content_type="application/octet-stream")
    frame = peer.inbox.message()
    assert frame.body == body
    assert frame.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("version", VERSIONS)
def test_headers_with_colons_and_utf_8(meet: Meet, name: str, version: str) -> None:
    headers = {"url": "http://host:80/a:b", "name": "Grüße 日本 🐢"}
    if version != "1.0":
        headers["back"] = "C:\\new"  # stomp.py decodes escapes in 1.0 too, which has none
    peer = meet(version)
    peer.subscribe(f"/queue/{name}")
    peer.send(f"/queue/{name}", "Ä", headers)
    frame = peer.inbox.message()
    assert {key: frame.headers[key] for key in headers} == headers
    assert frame.body == "Ä"


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_headers_with_newlines(meet: Meet, name: str, version: str) -> None:
    peer = meet(version)
    peer.subscribe(f"/queue/{name}")
    peer.send(f"/queue/{name}", "x", {"lines": "one\ntwo\n"})
    frame = peer.inbox.message()
    assert frame.headers["lines"] == "one\ntwo\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_bodies_of_a_mebibyte(meet: Meet, name: str, version: str) -> None:
    body = "0123456789abcdef" * 65536
    peer = meet(version)
    peer.subscribe(f"/queue/{name}", "client-individual")
    for _ in range(3):
        peer.send(f"/queue/{name}", body)
        frame = peer.inbox.message()
        assert frame.body == body
        peer.ack(frame)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_topic_reaches_every_client(meet: Meet, name: str, version: str) -> None:
    peers = [meet(each) for each in VERSIONS]
    for peer in peers:
        peer.subscribe(f"/topic/{name}")
    meet(version).send(f"/topic/{name}", "news")
    assert [peer.inbox.message().body for peer in peers] == ["news"] * 3


@pytest.mark.parametrize("version", VERSIONS)
def test_unsubscribing(meet: Meet, name: str, version: str) -> None:
    peer = meet(version)
    peer.subscribe(f"/queue/{name}")
    peer.connection.unsubscribe(id="1", headers={"receipt": "gone"})
    peer.inbox.receipt("gone")
    peer.send(f"/queue/{name}", "stays")
    assert peer.inbox.messages.empty()
    fresh = meet(version)
    fresh.subscribe(f"/queue/{name}")
    assert fresh.inbox.message().body == "stays"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_error_reaches_the_listener(meet: Meet, version: str) -> None:
    peer = meet(version)
    peer.connection.send("/nowhere/x", "x")
    assert peer.inbox.errors.get(timeout=PATIENCE).headers["message"]
