"""The client of the commands: what it says on the wire, and what it makes of answers."""

from __future__ import annotations

import socket
import threading

import pytest

from broker.client import DEFAULT_URL, Client, Target
from broker.errors import ConnectionLost, RefusedByBroker, Unreachable, UsageError

from .fake import Conversation, FakeBroker

URLS = {
    "stomp://localhost": ("localhost:61613", "", ""),
    "stomp://127.0.0.1:7": ("127.0.0.1:7", "", ""),
    "stomp://[::1]": ("[::1]:61613", "", ""),
    "stomp://[::1]:7/": ("[::1]:7", "", ""),
    "stomp://me@h:7": ("h:7", "me", ""),
    "stomp://me:se%40cret@h": ("h:61613", "me", "se@cret"),
    "stomp://me:a:b@h": ("h:61613", "me", "a:b"),
}
NO_URLS = [
    "",
    "h:1",
    "http://h",
    "stomp://",
    "stomp://h:x",
    "stomp://h:0",
    "stomp://h:70000",
    "stomp://h/x",
    "stomp://a%0Ab:c@h",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_read(url: str) -> None:
    target = Target.parse(url)
    assert (str(target.address), target.login, target.passcode) == URLS[url]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        Target.parse(url)


def test_a_password_is_in_no_text() -> None:
    target = Target.parse("stomp://me:canary@h")
    assert "canary" not in repr(target) + str(target)
    with pytest.raises(UsageError) as caught:
        Target.parse("stomp://me:canary@h/x/y")
    assert "canary" not in str(caught.value)


def test_the_default_url_is_this_machine() -> None:
    assert Target.parse(DEFAULT_URL).address.is_loopback


def test_it_logs_in_with_what_the_url_says() -> None:
    with FakeBroker() as broker:
        Client.connect(Target.parse(f"stomp://me:it%40me@127.0.0.1:{broker.port}")).disconnect()
        login = broker.last.login
        assert (login["accept-version"], login["login"], login["passcode"]) == ("1.2", "me", "it@me")
        assert login["heart-beat"] == "0,0"
        assert broker.last.commands == ["CONNECT", "DISCONNECT"]


def test_sends_wait_for_their_receipts() -> None:
    with FakeBroker() as broker:
        client = Client.connect(Target.parse(broker.url))
        for number in range(3000):
            client.send("/queue/a", b"%d" % number, window=100)
            assert client.unconfirmed < 100
        assert client.settle(10)
        client.disconnect()
        assert [body for _, body, _ in broker.last.sent] == [b"%d" % number for number in range(3000)]
        assert all(with_receipt for _, _, with_receipt in broker.last.sent)


def test_headers_and_bodies_arrive_as_they_were_given() -> None:
    body = bytes(range(256)) * 3
    with FakeBroker() as broker:
        client = Client.connect(Target.parse(broker.url))
        client.send("/queue/a", body, [("x:y", "1\n2\\\r"), ("name", "\u00e4\u4e2d")])
        client.disconnect()
        headers, got, _ = broker.last.sent[0]
        assert got == body
        assert (headers["x:y"], headers["name"]) == ("1\n2\\\r", "\u00e4\u4e2d")


def test_a_large_body_goes_both_ways_at_once() -> None:
    body = bytes(8 << 20)
    with FakeBroker([body]) as broker:
        client = Client.connect(Target.parse(broker.url))
        client.subscribe("/queue/a", prefetch=1)
        client.send("/queue/a", body)
        message = client.receive(20)
        assert message is not None and message.body == body
        client.ack(message)
        client.disconnect()
        assert broker.last.acked == [message.ack]


def test_receive_gives_up_after_its_timeout() -> None:
    with FakeBroker() as broker:
        client = Client.connect(Target.parse(broker.url))
        client.subscribe("/queue/a")
        assert client.receive(0.05) is None
        assert client.receive(0) is None
        client.disconnect()


def test_an_error_frame_says_what_the_broker_said() -> None:
    def refuse(conversation: Conversation, command: str) -> bool:
        if command != "SEND":
            return False
        conversation.write(
            "ERROR", [("message", "bad destination"), ("receipt-id", "r1")], b"no such thing\n"
        )
        return True

    with FakeBroker(hook=refuse) as broker:
        client = Client.connect(Target.parse(broker.url))
        client.send("/nowhere", b"x")
        with pytest.raises(RefusedByBroker, match="refused: bad destination: no such thing") as caught:
            client.settle(10)
        assert caught.value.receipt_id == "r1"
        client.close()


def test_an_error_is_seen_also_without_receipts() -> None:
    def refuse(conversation: Conversation, command: str) -> bool:
        if command == "SEND":
            conversation.write("ERROR", [("message", "bad destination")])
        return command == "SEND"

    with FakeBroker(hook=refuse) as broker:
        client = Client.connect(Target.parse(broker.url))
        client.send("/nowhere", b"x", receipt=False)
        with pytest.raises(RefusedByBroker):
            client.disconnect(receipt=False)


def test_a_broker_that_goes_away_is_noticed_with_what_is_unsure() -> None:
    def vanish(conversation: Conversation, command: str) -> bool:
        if command == "SEND":
            conversation.socket.shutdown(socket.SHUT_RDWR)
        return command == "SEND"

    with FakeBroker(hook=vanish) as broker:
        client = Client.connect(Target.parse(broker.url))
        client.send("/queue/a", b"x")
        with pytest.raises(ConnectionLost, match="1 frame without a receipt"):
            client.settle(10)
        client.close()


def test_writing_to_a_broker_that_closed_ends() -> None:
    def vanish(conversation: Conversation, command: str) -> bool:
        if command == "SEND":
            conversation.socket.shutdown(socket.SHUT_RDWR)
        return command == "SEND"

    with FakeBroker(hook=vanish) as broker:
        client = Client.connect(Target.parse(broker.url))
        with pytest.raises(ConnectionLost):
            for _ in range(10_000):
                client.send("/queue/a", bytes(10_000))
        client.close()


def test_nobody_listening_is_unreachable_and_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(Unreachable, match="stompd serve") as caught:
        Client.connect(Target.parse(f"stomp://127.0.0.1:{port}"))
    assert caught.value.exit_code == 69


def test_a_silent_listener_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target.parse(f"stomp://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Unreachable, match="does not answer"):
            Client.connect(target, timeout=0.2)


def test_a_listener_that_is_no_stomp_broker_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                accepted.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConnectionLost, match="not STOMP"):
            Client.connect(Target.parse(f"stomp://127.0.0.1:{listener.getsockname()[1]}"))
        thread.join(10)


def test_an_older_broker_is_refused_by_version() -> None:
    def old(conversation: Conversation, command: str) -> bool:
        if command == "CONNECT":
            conversation.write("CONNECTED", [("version", "1.1")])
        return command == "CONNECT"

    with FakeBroker(hook=old) as broker, pytest.raises(Unreachable, match=r"1\.1"):
        Client.connect(Target.parse(broker.url))


def test_agreed_heart_beats_are_sent_and_silence_is_noticed() -> None:
    def beats(conversation: Conversation, command: str) -> bool:
        if command == "CONNECT":
            conversation.write("CONNECTED", [("version", "1.2"), ("heart-beat", "50,50")])
        return command == "CONNECT"

    with FakeBroker(hook=beats) as broker:
        client = Client.connect(Target.parse(broker.url), heart_beat=(50, 50))
        with pytest.raises(ConnectionLost, match="silent"):
            client.receive(10)
        client.close()
