"""The process: its start, its ends, its exit codes, and what a restart finds."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.process import BrokerFailed, BrokerProcess, environment, free_port, run_command
from tests.support.wire import Wire

Make = Callable[..., BrokerProcess]


def exit_code(broker: BrokerProcess) -> tuple[int, str]:
    """Start, expect an end by itself, and give its exit code and what it said this time."""
    before = len(broker.stderr())
    broker.start(wait=False)
    return broker.wait(), broker.stderr()[before:]


def lines_of(text: str) -> list[str]:
    return [line for line in text.split("\n") if line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_the_receipts_of_what_was_in_flight(
    own_broker: Make, number: signal.Signals
) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/flight", "first")
        burst = b"".join(
            b"SEND\ndestination:/queue/flight\nreceipt:%d\n\n%d\0" % (count, count) for count in range(500)
        )
        wire.send(burst)
        wire.receipt("0")
        broker.signal(number)
        receipted = {int(text) for text in re.findall(rb"receipt-id:([0-9]+)\n", wire.rest(15))} | {0}
    assert broker.wait(10) == 0
    assert receipted == set(range(len(receipted)))
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/flight")
        wanted = ["first", *(str(count) for count in sorted(receipted))]
        assert wire.bodies(len(wanted)) == wanted


def test_a_stop_takes_seconds_even_with_clients_that_stay(own_broker: Make) -> None:
    broker = own_broker().start()
    wires = [Wire(broker.address) for _ in range(20)]
    try:
        for wire in wires:
            wire.connect()
            wire.subscribe("/queue/stay", ack="client")
        broker.signal(signal.SIGTERM)
        assert broker.wait(12) == 0
    finally:
        for wire in wires:
            wire.close()


def test_a_second_signal_ends_the_waiting_and_skips_nothing_that_keeps_messages(own_broker: Make) -> None:
    broker = own_broker({"shutdown": {"drain": '"60s"'}}).start()
    bodies = [f"{number:04}".encode() + bytes(64 * 1024) for number in range(200)]
    with Wire(broker.address) as producer, Wire(broker.address, receive_buffer=4096) as stuck:
        producer.connect()
        producer.publish("/queue/q", *bodies)
        stuck.connect()
        stuck.tell("SUBSCRIBE", {"id": "1", "destination": "/queue/q", "ack": "client"})
        producer.publish("/queue/q", "last")
        broker.signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while "stopping" not in broker.stderr():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        broker.signal(signal.SIGTERM)
        assert broker.wait(8) == 0  # the stuck consumer alone could hold it for ten seconds
    assert "everything is synced" in lines_of(broker.stderr())[-1]
    before = len(broker.stderr())
    broker.start()
    assert "after a clean stop" in broker.stderr()[before:]
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q")
        assert [got.body for got in wire.messages(201)] == [*bodies, b"last"]


def test_after_a_signal_nobody_is_let_in(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        broker.signal(signal.SIGTERM)
        broker.wait(12)
    with pytest.raises(OSError):
        Wire(broker.address)


def test_a_restart_keeps_what_was_receipted_and_forgets_what_was_acknowledged(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/a", *(str(n) for n in range(20)))
        wire.publish("/queue/b", b"\0binary\xff", key="välue:1")
        wire.subscribe("/queue/a", ack="client-individual")
        for got in wire.messages(20):
            if int(got.body) % 2:
                wire.ack(got)
        wire.call("DISCONNECT")
    for end in (broker.restart, broker.crash):
        end()
        with Wire(broker.address) as wire:
            wire.connect()
            wire.subscribe("/queue/a", ack="client-individual", name="a")
            assert wire.bodies(10) == [str(n) for n in range(0, 20, 2)]
            wire.subscribe("/queue/b", ack="client-individual", name="b")
            got = wire.expect("MESSAGE")
            assert (got.body, got["key"]) == (b"\0binary\xff", "välue:1")


def test_after_a_kill_what_was_delivered_comes_redelivered(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/q", "1", "2", "3")
        wire.subscribe("/queue/q", ack="client-individual", prefetch="2")
        assert wire.bodies(2) == ["1", "2"]
        broker.kill()
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q", ack="client-individual")
        got = wire.messages(3)
        assert [each.body for each in got] == [b"1", b"2", b"3"]
        assert [each.get("redelivered") for each in got[:2]] == ["true", "true"]


def test_after_a_kill_what_no_client_ever_got_is_not_flagged(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        for _ in range(5999):
            wire.tell("SEND", {"destination": "/queue/q"}, b"x")
            wire.tell("SEND", {"destination": "/queue/untouched"}, b"x")
        wire.publish("/queue/q", "x")
        wire.publish("/queue/untouched", "x")
        wire.subscribe("/queue/q", ack="client-individual", prefetch="1")
        wire.expect("MESSAGE")
        broker.kill()
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/untouched", name="u")
        assert {got.get("redelivered") for got in wire.messages(6000)} == {None}
        wire.subscribe("/queue/q", name="q")
        flags = [got.get("redelivered") for got in wire.messages(6000)]
        assert flags[0] == "true"
        assert flags[-1] is None
        assert flags == sorted(flags, key=lambda flag: flag is None)


def test_after_a_clean_stop_redelivered_is_exact(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/q", "1", "2", "3")
        wire.publish("/queue/untouched", "x")
        wire.subscribe("/queue/q", ack="client-individual", prefetch="2")
        assert wire.bodies(2) == ["1", "2"]
        wire.call("DISCONNECT")
    broker.restart()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q", ack="client-individual", name="q")
        assert [each.get("redelivered") for each in wire.messages(3)] == ["true", "true", None]
        wire.subscribe("/queue/untouched", name="u")
        assert wire.expect("MESSAGE").get("redelivered") is None


def test_after_a_clean_stop_what_was_in_flight_keeps_its_count(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/q", "x")
        wire.subscribe("/queue/q", ack="client-individual")
        for _ in range(3):
            wire.tell("NACK", {"id": wire.expect("MESSAGE")["ack"]})
        assert wire.expect("MESSAGE")["delivery-count"] == "4"
        broker.stop()
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q", ack="client-individual")
        assert wire.expect("MESSAGE")["delivery-count"] == "5"


def test_ten_deliveries_are_counted_over_kills(own_broker: Make) -> None:
    broker = own_broker().start()
    for round_number in range(3):
        with Wire(broker.address) as wire:
            wire.connect()
            if round_number == 0:
                wire.publish("/queue/poison", "x")
            wire.subscribe("/queue/poison", ack="client-individual")
            for _ in range(3):
                wire.ack(wire.expect("MESSAGE"), "NACK")
            broker.kill()  # while the connection is open: its end would count as a failure, too
        broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/poison", ack="client-individual", name="live")
        wire.subscribe("/queue/DLQ.poison", ack="client-individual", name="dead")
        for _ in range(4):
            got = wire.expect("MESSAGE")
            if got["subscription"] == "dead":
                break
            wire.ack(got, "NACK")  # with its receipt, so that the move to the dead letters is durable
        else:
            pytest.fail("still no dead letter")
        assert got["dead-letter-reason"] == "max-deliveries"
    broker.crash()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/DLQ.poison", ack="client-individual", name="dead")
        got = wire.expect("MESSAGE")
        assert (got.body, got["original-destination"]) == (b"x", "/queue/poison")
        wire.publish("/queue/poison", "marker")
        wire.subscribe("/queue/poison", name="live")
        assert wire.bodies(1) == ["marker"]


def test_a_message_id_is_never_used_again(own_broker: Make) -> None:
    broker = own_broker().start()
    seen: list[str] = []
    for end in (broker.crash, broker.restart, broker.crash, broker.stop):
        with Wire(broker.address) as wire:
            wire.connect()
            wire.publish("/queue/ids", "a", "b")
            wire.subscribe("/queue/ids", ack="client-individual")
            for got in wire.messages(2):
                seen.append(got["message-id"])
                wire.ack(got)
        end()
    assert len(seen) == len(set(seen)) == 8


def test_a_transaction_is_there_whole_or_not_at_all_after_a_kill(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        for transaction, end in (("open", None), ("done", "COMMIT"), ("undone", "ABORT")):
            wire.call("BEGIN", {"transaction": transaction})
            for number in range(3):
                body = f"{transaction} {number}".encode()
                wire.call("SEND", {"destination": f"/queue/t.{number}", "transaction": transaction}, body)
            if end:
                wire.call(end, {"transaction": transaction})
        broker.kill()
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        for number in range(3):
            wire.publish(f"/queue/t.{number}", "marker")
            wire.subscribe(f"/queue/t.{number}", name=str(number))
            assert wire.bodies(2) == [f"done {number}", "marker"]


def test_a_second_process_on_the_same_folder_ends_with_75(own_broker: Make, tmp_path: Path) -> None:
    broker = own_broker().start()
    second = BrokerProcess(tmp_path / "second")
    second.data_dir = broker.data_dir
    second.configure({})
    try:
        code, said = exit_code(second)
    finally:
        second.close()
    assert code == 75
    assert str(broker.data_dir) in said
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/q", "the first goes on")


def test_an_address_in_use_ends_with_69_and_names_it(own_broker: Make) -> None:
    broker = own_broker()
    with socket.create_server(broker.address):
        code, said = exit_code(broker)
    assert code == 69
    assert str(broker.port) in said
    broker.start()


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"limits": {"bodi": '"1KiB"'}}, ["bodi", "body"]),
        ({"limits": {"body": '"a lot"'}}, ["body", "a lot"]),
        ({"storage": {"fsync": '"sometimes"'}}, ["fsync", "sometimes", "always"]),
        ({"memory": {"limit": '"1MiB"'}}, ["limit", "16MiB"]),
        ({"stomp": {"listen": '["0.0.0.0:61999"]'}}, ["anonymous", "i_accept_plaintext"]),
        ({"nonsense": {"x": "1"}}, ["nonsense"]),
    ],
)
def test_a_bad_configuration_ends_with_78_and_says_what_is_wrong(
    own_broker: Make, sections: dict[str, dict[str, str]], named: list[str]
) -> None:
    broker = own_broker(sections)
    code, said = exit_code(broker)
    assert code == 78
    for word in [*named, "stompd.toml"]:
        assert word in said
    assert "Traceback" not in said
    assert not broker.data_dir.exists()


def test_a_configuration_that_is_no_toml_ends_with_78(own_broker: Make) -> None:
    broker = own_broker()
    broker.config.write_text("data_dir = \n")
    code, said = exit_code(broker)
    assert code == 78
    assert "stompd.toml" in said


def test_a_wrong_command_line_ends_with_64(tmp_path: Path) -> None:
    for arguments in (("serve", "--nonsense"), ("jump",), ("send",)):
        assert run_command(*arguments, cwd=tmp_path).returncode == 64


def damage(broker: BrokerProcess, needle: bytes) -> Path:
    """Flip one bit of the first place in the log that holds these bytes."""
    for path in sorted((broker.data_dir / "log").glob("*.seg")):
        data = bytearray(path.read_bytes())
        at = data.find(needle)
        if at >= 0:
            data[at] ^= 1
            path.write_bytes(data)
            return path
    raise AssertionError(f"{needle!r} is nowhere in the log")


def test_damaged_data_ends_with_65_and_is_named(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/victim", "precious-0", "precious-1", "precious-2")
    broker.stop()
    path = damage(broker, b"precious-1")
    before = path.read_bytes()
    for _ in range(2):
        code, said = exit_code(broker)
        assert code == 65
        assert path.name in said
        assert "Traceback" not in said
    assert path.read_bytes() == before


def test_damage_to_what_was_receipted_is_seen_after_a_kill_too(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/victim", "precious-0", "precious-1", "precious-2", "precious-3")
        broker.kill()
    damage(broker, b"precious-1")
    assert exit_code(broker)[0] == 65


def test_a_torn_tail_heals_by_itself_and_is_reported(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/q", "kept-0", "kept-1")
    broker.kill()
    path = sorted((broker.data_dir / "log").glob("*.seg"))[-1]
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    end += -end % 8
    with path.open("r+b") as file:
        file.seek(end)
        file.write(b"\xa5" * 100)
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q")
        assert wire.bodies(2) == ["kept-0", "kept-1"]


def test_the_start_says_what_a_person_wants_to_know(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/q", *("x" for _ in range(7)))
    broker.restart()
    said = broker.stderr()
    assert f"127.0.0.1:{broker.port}" in said
    assert f"127.0.0.1:{broker.http_port}" in said
    assert str(broker.data_dir) in said
    assert re.search(r"[0-9]+\.[0-9]+", said)
    assert "7 messages" in said or re.search(r"messages?\W+7\b", said)


def test_the_start_prints_the_port_that_the_system_chose(own_broker: Make) -> None:
    broker = own_broker({"stomp": {"listen": '["127.0.0.1:0"]'}, "http": {"listen": "[]"}})
    broker.start(wait=False)
    deadline = time.monotonic() + 20
    while not (found := re.search(r"127\.0\.0\.1:([1-9][0-9]*)", broker.stderr())):
        assert time.monotonic() < deadline, broker.stderr()
        time.sleep(0.02)
    broker.port = int(found[1])
    broker.wait_ready()
    with Wire(broker.address) as wire:
        wire.connect()
    broker.stop()


def test_health_is_asked_for_over_http(own_broker: Make) -> None:
    broker = own_broker().start()
    for path in ("/livez", "/readyz"):
        with socket.create_connection(("127.0.0.1", broker.http_port), timeout=10) as peer:
            peer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{broker.http_port}\r\n\r\n".encode())
            answer = b""
            while data := peer.recv(4096):
                answer += data
        assert answer.startswith(b"HTTP/1.1 200"), answer


def test_with_json_every_line_is_an_object(own_broker: Make) -> None:
    import json

    broker = own_broker({"log": {"format": '"json"'}}).start()
    with Wire(broker.address) as wire:
        wire.send(b"GET / HTTP/1.1\r\n\r\n")
        wire.rest()
    broker.stop()
    lines = lines_of(broker.stderr())
    assert len(lines) >= 2
    for line in lines:
        assert isinstance(json.loads(line), dict)


def test_secrets_and_bodies_never_reach_the_log(own_broker: Make) -> None:
    broker = own_broker({"log": {"level": '"debug"'}}).start()
    for frame in (
        b"SEND\nx:canary-header\n\ncanary-body\0",
        b"BAD canary-command\n\n\0",
        b"SEND\nx:\\tcanary-escape\n\n\0",
    ):
        with Wire(broker.address) as wire:
            wire.connect("1.2", {"login": "me", "passcode": "canary-passcode"})
            wire.send(frame)
            wire.rest()
    broker.stop()
    said = broker.stderr()
    assert said.count(" refused: ") == 3
    assert "canary" not in said


def test_a_flood_of_bad_connections_is_no_flood_of_lines(own_broker: Make) -> None:
    broker = own_broker().start()
    for _ in range(300):
        with Wire(broker.address) as wire:
            wire.send(b"GET / HTTP/1.1\r\n\r\n")
            wire.rest()
    broker.stop()
    assert len(lines_of(broker.stderr())) < 100


def test_a_kill_during_the_start_harms_nothing(own_broker: Make) -> None:
    broker = own_broker().start()
    with Wire(broker.address) as wire:
        wire.connect()
        for number in range(2000):
            wire.tell("SEND", {"destination": "/queue/q"}, str(number).encode())
        wire.publish("/queue/q", "2000")
    broker.kill()
    for delay in (0.02, 0.08, 0.15, 0.2, 0.25, 0.3):
        broker.start(wait=False)
        time.sleep(delay)  # the moment of the kill, not a wait for a result
        broker.kill()
    broker.start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/q")
        assert wire.bodies(2001) == [str(number) for number in range(2001)]


def test_many_segments_are_written_read_and_removed(own_broker: Make) -> None:
    broker = own_broker().start()
    body = b"y" * 100_000
    with Wire(broker.address) as wire:
        wire.connect()
        for _ in range(60):
            wire.tell("SEND", {"destination": "/queue/big"}, body)
        wire.publish("/queue/big", "last")
        assert len(list((broker.data_dir / "log").glob("*.seg"))) >= 5
    broker.crash()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/big", ack="client")
        got = wire.messages(61)
        assert all(each.body == body for each in got[:60])
        wire.ack(got[-1])
        deadline = time.monotonic() + 15
        while len(list((broker.data_dir / "log").glob("*.seg"))) > 3:
            assert time.monotonic() < deadline
            wire.publish("/topic/nobody", "x")
            wire.publish("/queue/other", "x")
    broker.crash()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/big", "marker")
        wire.subscribe("/queue/big")
        assert wire.bodies(1) == ["marker"]


def test_a_newcomers_minute(tmp_path: Path) -> None:
    """Start, send and receive from a second terminal, Ctrl-C, again: what was left is still there."""
    address = f"127.0.0.1:{free_port()}"
    serve = [
        sys.executable,
        "-m",
        "broker",
        "serve",
        "--listen",
        address,
        "--http",
        f"127.0.0.1:{free_port()}",
    ]
    url = ("--url", f"stomp://{address}")

    def started() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            serve, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        host, port = address.split(":")
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return process
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    raise BrokerFailed("it does not start") from None
                time.sleep(0.02)

    process = started()
    try:
        for body in ("hello", "left behind"):
            assert run_command("send", "/queue/orders", body, *url, cwd=tmp_path).returncode == 0
        got = run_command("receive", "/queue/orders", "--count", "1", *url, cwd=tmp_path)
        assert (got.returncode, got.stdout) == (0, b"hello\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        assert (tmp_path / "stompd-data").is_dir()
        process = started()
        got = run_command("receive", "/queue/orders", *url, cwd=tmp_path)
        assert (got.returncode, got.stdout) == (0, b"left behind\n")
    finally:
        process.kill()
        process.wait()


def test_segments_that_were_read_and_removed_give_their_room_back(own_broker: Make) -> None:
    """A removed file that is still open takes its room on the disk, and nobody sees what does."""
    broker = own_broker({"storage": {"segment_size": '"1MiB"'}, "memory": {"limit": '"16MiB"'}}).start()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.publish("/queue/room", *[bytes(64 * 1024)] * 100)
    broker.restart()
    with Wire(broker.address) as wire:
        wire.connect()
        wire.subscribe("/queue/room", ack="client")
        for _ in range(100):
            wire.ack(wire.expect("MESSAGE"))
        log = broker.data_dir / "log"
        deadline = time.monotonic() + 10
        while len(list(log.glob("*.seg"))) > 2 or any("deleted" in name for name in open_names(broker)):
            assert time.monotonic() < deadline, open_names(broker)
            time.sleep(0.05)


def open_names(broker: BrokerProcess) -> list[str]:
    names = []
    for descriptor in Path(f"/proc/{broker.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.append(os.readlink(descriptor))
    return names
