"""What destinations are and who gets a message (features.md, "Destinations")."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.wire import Got, Wire

Dial = Callable[..., Wire]


def test_messages_wait_in_a_queue_and_come_in_order(dial: Dial, name: str) -> None:
    producer, consumer = dial(), dial()
    producer.publish(f"/queue/{name}", *(str(n) for n in range(50)))
    consumer.subscribe(f"/queue/{name}")
    assert consumer.bodies(50) == [str(n) for n in range(50)]


@pytest.mark.parametrize(
    "destination",
    [
        "/queue/{}/with/slashes",
        "/queue/{}%2Fnot-decoded",
        "/queue/{} with space",
        "/queue/{}-ü-日本",
        "/queue/..{}",
    ],
)
def test_a_queue_name_is_opaque(dial: Dial, name: str, destination: str) -> None:
    wire = dial()
    wire.publish(destination.format(name), "x")
    wire.subscribe(destination.format(name))
    got = wire.expect("MESSAGE")
    assert (got["destination"], got.body) == (destination.format(name), b"x")


def test_a_percent_escape_is_not_decoded(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/queue/{name}%2Fa", "escaped")
    wire.publish(f"/queue/{name}/a", "slash")
    wire.subscribe(f"/queue/{name}/a")
    assert wire.bodies(1) == ["slash"]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("{}", "/queue/{}"),
        ("/queue/{}", "{}"),
        ("/amq/queue/{}", "/queue/{}"),
        ("/queue/{}", "/amq/queue/{}"),
    ],
)
def test_other_names_of_a_queue(dial: Dial, name: str, sent: str, read: str) -> None:
    wire = dial()
    wire.publish(sent.format(name), "x")
    wire.subscribe(read.format(name))
    got = wire.expect("MESSAGE")
    assert got.body == b"x"
    assert got["destination"] == sent.format(name)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("/exchange/amq.topic/{}.a", "/topic/{}.a"),
        ("/topic/{}.a", "/exchange/amq.topic/{}.a"),
        ("/exchange/amq.direct/{}.a", "/topic/{}.a"),
        ("/topic/{}.a", "/exchange/amq.topic/{}.*"),
        ("/topic/{}.a", "/exchange/amq.topic/{}.#"),
    ],
)
def test_other_names_of_a_topic(dial: Dial, name: str, sent: str, read: str) -> None:
    wire = dial()
    wire.subscribe(read.format(name))
    wire.publish(sent.format(name), "x")
    got = wire.expect("MESSAGE")
    assert got.body == b"x"
    assert got["destination"] == sent.format(name)


def test_a_bare_name_is_a_topic_where_the_client_says_multicast(dial: Dial, name: str) -> None:
    one, two = dial(), dial()
    one.subscribe(name, subscription_type="MULTICAST")
    two.subscribe(f"/topic/{name}")
    one.publish(name, "x", destination_type="MULTICAST")
    assert one.bodies(1) == two.bodies(1) == ["x"]


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("{}.*", ["{}.a", "{}.b"], ["{}", "{}.a.b", "other.a"]),
        ("{}.*.c", ["{}.a.c"], ["{}.c", "{}.a.b.c", "{}.a.b"]),
        ("{}.#", ["{}", "{}.a", "{}.a.b.c"], ["{}x"]),
        ("{}.>", ["{}.a", "{}.a.b.c"], ["{}x"]),
        ("{}.#.z", ["{}.z", "{}.a.z", "{}.a.b.z"], ["{}.z.a", "{}"]),
        ("*.{}", ["a.{}", "b.{}"], ["{}", "a.b.{}"]),
        ("#.{}.end", ["{}.end", "a.{}.end", "a.b.{}.end"], ["{}", "a.{}"]),
        ("{}.a", ["{}.a"], ["{}.b", "{}.A", "{}.a.b"]),
        ("{}.a*", ["{}.a*"], ["{}.ab"]),
    ],
)
def test_wildcards_of_topics(
    dial: Dial, name: str, pattern: str, matching: list[str], others: list[str]
) -> None:
    consumer, producer = dial(), dial()
    consumer.subscribe("/topic/" + pattern.format(name))
    for topic in [*others, *matching]:
        producer.publish("/topic/" + topic.format(name), topic.format(name))
    assert consumer.bodies(len(matching)) == [topic.format(name) for topic in matching]


@pytest.mark.parametrize("command", ["SUBSCRIBE", "SEND"])
@pytest.mark.parametrize(
    "destination", ["/queue/{}.*", "/queue/{}.#", "/queue/{}.>", "/queue/*", "/amq/queue/#", "{}.*"]
)
def test_a_wildcard_on_a_queue_is_refused(dial: Dial, name: str, destination: str, command: str) -> None:
    wire = dial()
    wire.tell(command, {"id": "1", "destination": destination.format(name)})
    assert wire.expect_error()["message"] == "bad destination"


def test_the_wildcard_for_the_rest_may_only_stand_last(dial: Dial, name: str) -> None:
    wire = dial()
    wire.tell("SUBSCRIBE", {"id": "1", "destination": f"/topic/{name}.>.end"})
    wire.expect_error()


@pytest.mark.parametrize("topic", ["{}.*", "{}.#", "{}.>"])
def test_a_send_names_one_topic(dial: Dial, name: str, topic: str) -> None:
    wire = dial()
    wire.tell("SEND", {"destination": "/topic/" + topic.format(name)})
    wire.expect_error()


def test_dollar_topics_take_no_send(dial: Dial) -> None:
    wire = dial()
    wire.tell("SEND", {"destination": "/topic/$events.connections", "receipt": "r"})
    assert wire.expect_error()["receipt-id"] == "r"


def test_a_topic_without_subscribers_takes_a_send_and_keeps_nothing(dial: Dial, name: str) -> None:
    wire = dial()
    wire.publish(f"/topic/{name}", "nobody")
    wire.subscribe(f"/topic/{name}")
    wire.publish(f"/topic/{name}", "somebody")
    assert wire.bodies(1) == ["somebody"]


def test_a_topic_subscriber_that_unsubscribes_gets_nothing_more(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/topic/{name}", name="a")
    wire.subscribe(f"/topic/{name}", name="b")
    wire.call("UNSUBSCRIBE", {"id": "a"})
    wire.publish(f"/topic/{name}", "1", "2")
    assert [got["subscription"] for got in wire.messages(2)] == ["b", "b"]


@pytest.mark.parametrize(
    "destination", ["/queue/", "/topic/", "/temp-queue/", "/nowhere/x", "/", "/queue", "/stream/x", "/dsub/x"]
)
@pytest.mark.parametrize("command", ["SEND", "SUBSCRIBE"])
def test_a_destination_that_is_none_is_refused(dial: Dial, command: str, destination: str) -> None:
    wire = dial()
    wire.tell(command, {"id": "1", "destination": destination, "receipt": "r"})
    assert wire.expect_error()["receipt-id"] == "r"


def test_a_destination_of_255_bytes_is_taken_and_one_of_256_is_not(dial: Dial, name: str) -> None:
    wire = dial()
    longest = f"/queue/{name}-".ljust(255, "x")
    wire.publish(longest, "x")
    wire.tell("SEND", {"destination": longest + "x", "receipt": "r"})
    assert wire.expect_error()["receipt-id"] == "r"


def test_a_worker_answers_to_the_temporary_queue_of_the_asker(dial: Dial, name: str) -> None:
    asker, worker = dial(), dial()
    worker.subscribe(f"/queue/{name}")
    asker.subscribe("/temp-queue/answers", name="t")
    asker.publish(f"/queue/{name}", "ask", reply_to="/temp-queue/answers")
    asked = worker.expect("MESSAGE")
    assert asked["reply-to"] != "/temp-queue/answers"
    worker.publish(asked["reply-to"], "answer")
    got = asker.expect("MESSAGE")
    assert (got.body, got["subscription"]) == (b"answer", "t")


def test_a_reply_to_without_a_subscription_makes_one(dial: Dial, name: str) -> None:
    asker, worker = dial(), dial()
    worker.subscribe(f"/queue/{name}")
    asker.publish(f"/queue/{name}", "ask", reply_to="/temp-queue/answers")
    worker.publish(worker.expect("MESSAGE")["reply-to"], "answer")
    assert asker.expect("MESSAGE").body == b"answer"


def test_a_temporary_queue_belongs_to_its_connection(dial: Dial, name: str) -> None:
    asker, worker, thief = dial(), dial(), dial()
    worker.subscribe(f"/queue/{name}")
    asker.subscribe("/temp-queue/answers", name="t")
    asker.publish(f"/queue/{name}", "ask", reply_to="/temp-queue/answers")
    address = worker.expect("MESSAGE")["reply-to"]
    thief.tell("SUBSCRIBE", {"id": "1", "destination": address, "receipt": "r"})
    assert thief.expect_error()["receipt-id"] == "r"
    worker.publish(address, "still mine")
    assert asker.expect("MESSAGE").body == b"still mine"


def test_the_same_local_name_is_two_queues_for_two_connections(dial: Dial, name: str) -> None:
    one, two = dial(), dial()
    one.subscribe("/temp-queue/same", name="1")
    two.subscribe("/temp-queue/same", name="2")
    one.publish("/temp-queue/same", "for one")
    two.publish("/temp-queue/same", "for two")
    assert (one.bodies(1), two.bodies(1)) == (["for one"], ["for two"])


def test_a_send_to_a_temporary_queue_that_is_gone_is_dropped_and_said_so(dial: Dial, name: str) -> None:
    asker, worker = dial(), dial()
    worker.subscribe(f"/queue/{name}")
    asker.subscribe("/temp-queue/answers", name="t")
    asker.publish(f"/queue/{name}", "ask", reply_to="/temp-queue/answers")
    address = worker.expect("MESSAGE")["reply-to"]
    asker.call("DISCONNECT")
    asker.expect_closed()
    assert worker.call("SEND", {"destination": address}, b"late").get("dropped") == "true"


def spread(consumers: list[Wire], count: int) -> list[list[Got]]:
    """Read `count` messages in all, whoever they go to."""
    taken: list[list[Got]] = [[] for _ in consumers]
    while sum(map(len, taken)) < count:
        before = sum(map(len, taken))
        for consumer, got in zip(consumers, taken, strict=True):
            while not consumer.idle(0.05):
                got.append(consumer.expect("MESSAGE"))
        assert sum(map(len, taken)) > before or before < count
    return taken


def test_consumers_share_a_queue_fairly(dial: Dial, name: str) -> None:
    consumers = [dial() for _ in range(4)]
    for consumer in consumers:
        consumer.subscribe(f"/queue/{name}", ack="client-individual")
    dial().publish(f"/queue/{name}", *(str(n) for n in range(40)))
    taken = spread(consumers, 40)
    assert sorted(int(got.body) for each in taken for got in each) == list(range(40))
    assert all(5 <= len(each) <= 15 for each in taken)


def test_a_consumer_without_credit_leaves_messages_to_the_others(dial: Dial, name: str) -> None:
    slow, fast = dial(), dial()
    slow.subscribe(f"/queue/{name}", ack="client-individual", prefetch="1")
    fast.subscribe(f"/queue/{name}", ack="client-individual")
    dial().publish(f"/queue/{name}", *(str(n) for n in range(20)))
    taken = spread([slow, fast], 20)
    assert (len(taken[0]), len(taken[1])) == (1, 19)


@pytest.mark.parametrize(
    ("header", "value", "credit"),
    [
        ("prefetch", "1", 1),
        ("prefetch", "3", 3),
        ("prefetch-count", "2", 2),
        ("activemq.prefetchSize", "2", 2),
        ("consumer-window-size", "0", 1),
    ],
)
@pytest.mark.parametrize("mode", ["client", "client-individual"])
def test_prefetch_bounds_what_is_unacknowledged(
    dial: Dial, name: str, header: str, value: str, credit: int, mode: str
) -> None:
    wire = dial()
    dial().publish(f"/queue/{name}", *(str(n) for n in range(credit + 2)))
    wire.call("SUBSCRIBE", {"id": "1", "destination": f"/queue/{name}", "ack": mode, header: value})
    first = wire.messages(credit)
    assert wire.idle(0.15)
    wire.ack(first[0])
    assert wire.bodies(1) == [str(credit)]


@pytest.mark.parametrize(
    ("header", "value"),
    [("prefetch-count", "0"), ("consumer-window-size", "-1"), ("prefetch", "1000000000")],
)
def test_a_prefetch_over_the_maximum_is_lowered_to_it(dial: Dial, name: str, header: str, value: str) -> None:
    wire = dial()
    dial().publish(f"/queue/{name}", *(str(n) for n in range(300)))
    wire.call("SUBSCRIBE", {"id": "1", "destination": f"/queue/{name}", "ack": "client", header: value})
    assert wire.bodies(300) == [str(n) for n in range(300)]


def test_without_a_prefetch_256_messages_are_in_flight(dial: Dial, name: str) -> None:
    wire = dial()
    producer = dial()
    for number in range(260):
        producer.tell("SEND", {"destination": f"/queue/{name}"}, str(number).encode())
    producer.publish(f"/queue/{name}", "260")
    wire.subscribe(f"/queue/{name}", ack="client")
    taken = wire.messages(256)
    assert wire.idle(0.15)
    wire.ack(taken[-1])
    assert wire.bodies(5) == [str(n) for n in range(256, 261)]


def test_prefetch_does_not_bind_an_auto_subscription(dial: Dial, name: str) -> None:
    wire = dial()
    wire.subscribe(f"/queue/{name}", prefetch="1")
    dial().publish(f"/queue/{name}", "1", "2", "3")
    assert wire.bodies(3) == ["1", "2", "3"]
