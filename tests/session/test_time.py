"""Deadlines, heart-beats and being held back, with a clock that only the test moves."""

from __future__ import annotations

import pytest

from tests.core.world import Client, World, drain, failures, texts


def test_who_does_not_log_in_in_time_is_told_so_and_closed() -> None:
    world = World(limits={"login_deadline": 10.0})
    client = world.stranger()
    world.advance(9.9)
    assert not client.closed
    world.advance(0.2)
    assert client.closed and client.one("ERROR").body == b"malformed frame\n"


def test_bytes_that_are_no_connect_do_not_move_the_login_deadline() -> None:
    world = World(limits={"login_deadline": 10.0})
    client = world.stranger()
    for _ in range(12):
        world.advance(1.0)
        client.feed(b"\n")
    assert client.closed


def test_a_frame_that_does_not_come_to_its_end_in_time_is_refused() -> None:
    world = World(limits={"frame_deadline": 30.0})
    client = world.connect().feed(b"SEND\ndestination:/queue/a\n")
    world.advance(29.5)
    assert not client.closed
    world.advance(1.0)
    assert client.closed and client.one("ERROR")["message"] == "malformed frame"


def test_a_body_that_keeps_up_a_kibibyte_a_second_may_take_its_time() -> None:
    world = World(limits={"frame_deadline": 30.0})
    client = world.connect().feed(b"SEND\ndestination:/queue/a\ncontent-length:100000\n\n")
    for _ in range(50):
        client.feed(b"x" * 2000)
        world.advance(1.0)
    client.feed(b"\0")
    assert not client.closed
    assert len(drain(world, "/queue/a")[0].body) == 100_000


def test_half_a_frame_right_behind_connect_has_the_same_deadline() -> None:
    world = World(limits={"frame_deadline": 30.0})
    client = world.stranger().feed(b"CONNECT\naccept-version:1.2\nhost:/\n\n\0SEND\ndestination")
    assert world.budget.accounts["frames in the making"].used > 0
    world.advance(31.0)
    assert client.closed


def test_a_client_that_said_all_in_one_chunk_may_be_silent_afterwards() -> None:
    world = World(limits={"frame_deadline": 30.0})
    client = world.stranger()
    client.feed(b"CONNECT\naccept-version:1.2\nhost:/\nheart-beat:0,1000\n\n\0SEND\ndestination:/queue/a\n\nx\0")
    assert world.budget.accounts["frames in the making"].used == 0
    world.advance(300.0)
    assert not client.closed


# --- heart-beats


def beating(world: World, ours: str) -> Client:
    return world.connect(heart_beat=ours)


def test_the_broker_beats_when_it_has_nothing_else_to_say() -> None:
    world = World(limits={"heart_beat_send": 1000})
    client = beating(world, "0,2000")
    world.advance(20.0)
    assert 10 <= client.beats <= 14


def test_the_broker_does_not_beat_where_none_was_agreed() -> None:
    world = World()
    client = beating(world, "0,0")
    world.advance(100.0)
    assert client.beats == 0 and not client.closed


def test_messages_count_as_heart_beats() -> None:
    world = World(limits={"heart_beat_send": 1000})
    client = beating(world, "0,2000").subscribe("/queue/a", ack="auto")
    producer = world.connect()
    for _ in range(20):
        world.advance(1.0)
        producer.publish("/queue/a", "x")
    assert client.beats == 0


def test_who_misses_its_heart_beats_is_dead_after_twice_the_interval() -> None:
    world = World(limits={"heart_beat_receive": 1000})
    world.connect().publish("/queue/a", "x")
    client = beating(world, "1000,0").subscribe("/queue/a")
    world.advance(1.9)
    assert not client.closed
    world.advance(0.2)
    assert client.closed
    assert drain(world, "/queue/a")[0]["redelivered"] == "true"


def test_any_byte_counts_as_a_heart_beat() -> None:
    world = World(limits={"heart_beat_receive": 1000})
    client = beating(world, "1000,0")
    for data in (b"\n", b"\r\n", b"SEND\n", b"destination:/queue/a\n\n", b"x", b"\0") * 3:
        world.advance(1.5)
        client.feed(data)
    assert not client.closed


def test_one_without_heart_beats_is_never_cut_for_being_idle() -> None:
    world = World()
    client = world.connect()
    world.advance(100_000.0)
    assert not client.closed


# --- held back


def full(world: World) -> None:
    world.budget.account("test").book(world.budget.limit)


def emptied(world: World) -> None:
    account = world.budget.account("test")
    account.book(-account.used)
    world.run()


def test_over_the_budget_a_producer_is_paused_and_goes_on_when_there_is_room() -> None:
    world = World()
    client = world.connect()
    full(world)
    client.publish("/queue/a", "1", receipt="1")
    client.publish("/queue/a", "2", receipt="2")
    assert client.session.paused and client.receipts() == []
    world.advance(20.0)
    emptied(world)
    assert client.receipts() == ["1", "2"] and not client.session.paused
    assert texts(drain(world, "/queue/a")) == ["1", "2"]


def test_a_producer_that_is_held_back_for_too_long_is_refused() -> None:
    world = World(limits={"hold": 30.0})
    client = world.connect()
    full(world)
    client.publish("/queue/a", "1", receipt="1")
    world.advance(29.9)
    assert not client.closed
    world.advance(0.2)
    error = client.one("ERROR")
    assert error["receipt-id"] == "1" and error["message"] == "broker is over its memory limit"
    assert client.closed


def test_over_the_budget_a_connection_with_a_subscription_is_refused_at_once_and_blamed_for_nothing() -> None:
    world = World()
    world.connect().publish("/queue/a", "x")
    client = world.connect().subscribe("/queue/a")
    full(world)
    client.publish("/queue/b", "y", receipt="r")
    assert client.one("ERROR")["receipt-id"] == "r" and client.closed
    emptied(world)
    assert failures(world, "/queue/a") == [0]


@pytest.mark.parametrize("subscribed", [True, False])
def test_over_the_budget_a_large_body_is_refused_or_held_back_before_it_is_read(subscribed: bool) -> None:
    world = World()
    client = world.connect()
    subscribe = b"SUBSCRIBE\nid:1\ndestination:/queue/a\n\n\0" if subscribed else b""
    full(world)
    # In one piece: whether the connection may be paused is known only behind its SUBSCRIBE.
    client.feed(subscribe + b"SEND\ndestination:/queue/b\ncontent-length:100000\n\nbegun")
    if subscribed:
        assert client.one("ERROR")["message"] == "broker is over its memory limit" and client.closed
    else:
        assert client.session.paused and not client.closed


def test_acknowledgements_go_on_over_the_budget() -> None:
    world = World()
    client = world.connect().subscribe("/queue/a").publish("/queue/a", "x")
    full(world)
    client.ack(client.one(), receipt="r")
    assert client.receipts() == ["r"]


def test_what_follows_a_held_frame_stays_behind_it() -> None:
    world = World()
    client = world.connect()
    full(world)
    client.feed(
        b"SEND\ndestination:/queue/a\n\n1\0SUBSCRIBE\nid:s\ndestination:/queue/a\nack:client\n\n\0"
        b"SEND\ndestination:/queue/a\n\n2\0"
    )
    assert client.take() == []
    emptied(world)
    assert client.bodies() == ["1", "2"]


def test_a_session_that_is_held_again_while_it_is_released_loses_nothing() -> None:
    world = World()
    client = world.connect()
    full(world)
    frames = [b"SEND\ndestination:/queue/%c\nreceipt:%d\n\n%d\0" % (b"ab"[n % 2], n, n) for n in range(6)]
    client.feed(b"".join(frames))
    account = world.budget.account("test")
    publish = world.broker.publish

    def publish_once(*args: object) -> int:
        lsn = publish(*args)  # type: ignore[arg-type]
        account.book(world.budget.limit)  # full again behind each message
        return lsn

    world.broker.publish = publish_once  # type: ignore[method-assign, assignment]
    for _ in range(6):
        assert client.session.paused
        emptied(world)
    emptied(world)
    assert client.receipts() == [str(n) for n in range(6)]
    world.broker.publish = publish  # type: ignore[method-assign]
    assert [texts(drain(world, f"/queue/{name}")) for name in "ab"] == [["0", "2", "4"], ["1", "3", "5"]]


def test_a_connection_that_ends_while_it_is_held_leaves_nothing_behind() -> None:
    world = World()
    client = world.connect()
    full(world)
    client.publish("/queue/a", "1").feed(b"SEND\ndestination:/queue/a\ncontent-length:50000\n\nabc")
    client.lose()
    emptied(world)
    assert world.budget.used == 0
    assert drain(world, "/queue/a") == []


def test_the_time_in_which_it_is_held_is_not_counted_against_a_frame_or_a_heart_beat() -> None:
    world = World(limits={"hold": 60.0, "frame_deadline": 10.0, "heart_beat_receive": 1000})
    client = beating(world, "1000,0")
    full(world)
    client.feed(b"SEND\ndestination:/queue/a\n\n1\0SEND\ndesti")
    world.advance(40.0)
    assert not client.closed
    emptied(world)
    client.feed(b"nation:/queue/a\n\n2\0")
    assert not client.closed and texts(drain(world, "/queue/a")) == ["1", "2"]


@pytest.mark.parametrize("big", [False, True])
def test_a_big_body_takes_its_room_from_the_budget_before_it_is_read(big: bool) -> None:
    world = World()
    client = world.connect()
    full(world)
    client.feed(b"SEND\ndestination:/queue/a\ncontent-length:%d\n\n" % (100_000 if big else 1000))
    assert client.session.paused is big
