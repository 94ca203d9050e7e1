"""The commands as a shell uses them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker import __version__
from broker.cli import main
from broker.cli.entry import COMMANDS
from broker.cli.progress import Progress
from broker.config import Settings, keys

from .fake import Conversation, FakeBroker

ROOT = Path(__file__).resolve().parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STOMPD_")]:
        monkeypatch.delenv(name)


def feed_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "broker", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# Words and exit codes


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out and f"stompd {command}" in out


def test_help_names_all_commands(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"  {name} " in out for name in COMMANDS)


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"stompd {__version__}\n"


UNKNOWN = {
    "sned": "stompd send",
    "recieve": "stompd receive",
    "server": "stompd serve",
    "xyzzy": "there are: serve",
}


@pytest.mark.parametrize("word", UNKNOWN)
def test_an_unknown_command_suggests_the_nearest(word: str, capsys: Capture) -> None:
    assert main([word]) == 64
    assert UNKNOWN[word] in capsys.readouterr().err


WRONG_LINES = [
    ["send"],
    ["receive"],
    ["send", ""],
    ["send", "/queue/a", "x", "y"],
    ["send", "/queue/a", "x", "--file", "y"],
    ["send", "/queue/a", "x", "--lines"],
    ["send", "/queue/a", "--lines", "--count", "2"],
    ["send", "/queue/a", "x", "--count", "0"],
    ["send", "/queue/a", "x", "--count", "1_0"],
    ["send", "/queue/a", "x", "--header", "nocolon"],
    ["send", "/queue/a", "x", "--header", ":v"],
    ["send", "/queue/a", "x", "--url", "http://h"],
    ["send", "/queue/a", "--file", "/no/such/file"],
    ["receive", "/queue/a", "--count", "1", "--follow"],
    ["receive", "/queue/a", "--ack", "maybe"],
    ["receive", "/queue/a", "--timeout", "soon"],
    ["receive", "/queue/a", "--ack", "auto", "--prefetch", "3"],
    ["check", "--verbose"],
    ["serve", "extra"],
]


@pytest.mark.parametrize("words", WRONG_LINES, ids=" ".join)
def test_a_wrong_line_is_64_and_one_clear_text(words: list[str], capsys: Capture) -> None:
    with FakeBroker() as broker:
        if words[0] in ("send", "receive") and "--url" not in words:
            words = [*words, "--url", broker.url]
        assert main(words) == 64
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("stompd: ") and "Traceback" not in captured.err


def test_no_broker_is_69(capsys: Capture) -> None:
    with FakeBroker() as gone:
        pass
    assert main(["send", "/queue/a", "x", "--url", gone.url]) == 69
    assert "is the broker running?" in capsys.readouterr().err


def test_a_refusal_is_69_and_says_why(capsys: Capture) -> None:
    def refuse(conversation: Conversation, command: str) -> bool:
        if command == "SUBSCRIBE":
            conversation.write("ERROR", [("message", "bad destination")])
        return command == "SUBSCRIBE"

    with FakeBroker(hook=refuse) as broker:
        assert main(["receive", "/queue/a", "--url", broker.url]) == 69
    assert "bad destination" in capsys.readouterr().err


def test_the_url_comes_from_the_variable_where_no_option_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeBroker() as broker:
        monkeypatch.setenv("STOMPD_URL", broker.url)
        assert main(["send", "-q", "/queue/a", "x"]) == 0
        assert broker.last.sent[0][1] == b"x"


# serve and check


@pytest.mark.parametrize("words", [[], ["serve"], ["--data-dir", "d"], ["serve", "--listen", "127.0.0.1:0"]])
def test_serve_is_the_default_and_gets_the_settings(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import broker.server

    seen: list[Settings] = []

    def run(settings: Settings) -> int:
        seen.append(settings)
        return 75

    monkeypatch.setattr(broker.server, "run", run, raising=False)
    assert main(words) == 75
    assert seen[0].data_dir == ("d" if "d" in words else "./stompd-data")
    if "--listen" in words:
        assert [str(address) for address in seen[0].stomp.listen] == ["127.0.0.1:0"]


def test_check_prints_a_file_that_comes_to_the_same(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "a.toml"
    config.write_text(
        'data_dir = "a \\"b\\" \\\\ \\u00e9"\n[limits]\nbody = 5000\nhold = "1.5s"\n[log]\nformat = "json"\n'
    )
    monkeypatch.setenv("STOMPD_MEMORY__LIMIT", "17MiB")
    assert main(["check", "--config", str(config), "--listen", "127.0.0.1:0"]) == 0
    printed = capsys.readouterr().out
    assert f"# file {config}" in printed and "# variable STOMPD_MEMORY__LIMIT" in printed
    assert "# flag" in printed and "# default, lowered to fit memory.limit" in printed
    tree = tomllib.loads(printed)
    assert tree["data_dir"] == 'a "b" \\ \u00e9'
    again = tmp_path / "b.toml"
    again.write_text(printed)
    assert main(["check", "--config", str(again)]) == 0
    assert [line.split("#")[0] for line in capsys.readouterr().out.split("\n")] == [
        line.split("#")[0] for line in printed.split("\n")
    ]


def test_check_as_json_has_every_key_with_its_origin(capsys: Capture) -> None:
    assert main(["check", "--json", "--data-dir", "x"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert list(tree) == [key.name for key in keys()]
    assert tree["data_dir"] == {"value": "x", "origin": "flag"}
    assert tree["limits.body"] == {"value": 4 << 20, "origin": "default"}
    assert tree["stomp.listen"]["value"] == ["127.0.0.1:61613", "[::1]:61613"]


def test_check_refuses_with_78(tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "a.toml"
    config.write_text("[limits]\nbdy = 3\n")
    assert main(["check", "--config", str(config)]) == 78
    captured = capsys.readouterr()
    assert captured.out == "" and "did you mean limits.body?" in captured.err


# send


def test_send_takes_the_body_from_the_argument(capsys: Capture) -> None:
    with FakeBroker() as broker:
        words = ["send", "/queue/a", "h\u00e9", "--header", "x:1:2", "--header", "y:", "--url", broker.url]
        assert main(words) == 0
        headers, body, with_receipt = broker.last.sent[0]
        assert (body, with_receipt) == ("h\u00e9".encode(), True)
        assert (headers["destination"], headers["x"], headers["y"]) == ("/queue/a", "1:2", "")
        assert broker.last.commands == ["CONNECT", "SEND", "DISCONNECT"]
    assert capsys.readouterr().err == "sent 1 message to /queue/a, all receipted\n"


def test_send_takes_the_body_from_a_file_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) + b"\nend\n"
    (tmp_path / "f").write_bytes(data)
    with FakeBroker() as broker:
        assert main(["send", "-q", "/queue/a", "--file", str(tmp_path / "f"), "--url", broker.url]) == 0
        assert broker.last.sent[0][1] == data
        for words in (["send", "-q", "/queue/a"], ["send", "-q", "/queue/a", "--file", "-"]):
            feed_stdin(monkeypatch, data)
            assert main([*words, "--url", broker.url]) == 0
            assert broker.last.sent[0][1] == data


def test_send_lines_makes_each_line_a_message(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    feed_stdin(monkeypatch, b"one\ntwo\r\n\n\xff\xfe\nlast")
    with FakeBroker() as broker:
        assert main(["send", "/queue/a", "--lines", "--url", broker.url]) == 0
        assert [body for _, body, _ in broker.last.sent] == [b"one", b"two", b"", b"\xff\xfe", b"last"]
    assert capsys.readouterr().err == "sent 5 messages to /queue/a, all receipted\n"


def test_send_count_repeats_the_body(capsys: Capture) -> None:
    with FakeBroker() as broker:
        assert main(["send", "-q", "/queue/a", "x", "--count", "2500", "--url", broker.url]) == 0
        assert [body for _, body, _ in broker.last.sent] == [b"x"] * 2500
    assert capsys.readouterr().err == ""


def test_send_without_receipts_asks_for_none(capsys: Capture) -> None:
    with FakeBroker() as broker:
        assert main(["send", "/topic/a", "x", "--no-receipt", "--url", broker.url]) == 0
        assert [with_receipt for _, _, with_receipt in broker.last.sent] == [False]
    assert "no receipts asked for" in capsys.readouterr().err


def test_send_does_not_claim_what_has_no_receipt(capsys: Capture) -> None:
    def refuse(conversation: Conversation, command: str) -> bool:
        if command == "SEND" and len(conversation.sent) == 3:
            conversation.write(
                "ERROR", [("message", "broker is over its memory limit"), ("receipt-id", "r3")]
            )
        return command == "SEND" and len(conversation.sent) >= 3

    with FakeBroker(hook=refuse) as broker:
        assert main(["send", "/queue/a", "x", "--count", "5", "--url", broker.url]) == 69
    err = capsys.readouterr().err
    assert "over its memory limit" in err and "all receipted" not in err


# receive


def test_receive_takes_what_waits_prints_it_and_acknowledges(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    with FakeBroker([b"one", b"two\n", b"", b"\xff"]) as broker:
        assert main(["receive", "/queue/a", "--timeout", "100ms", "--url", broker.url]) == 0
        assert broker.last.acked == ["a1", "a2", "a3", "a4"]
        assert broker.last.subscribes[0]["ack"] == "client-individual"
        assert broker.last.commands[-1] == "DISCONNECT"
    assert capsysbinary.readouterr().out == b"one\ntwo\n\n\xff\n"


@pytest.mark.parametrize("count", [1, 2, 7, 255, 256, 257, 600, 1000])
@pytest.mark.parametrize("ack", ["client-individual", "client"])
def test_receive_count_takes_not_one_message_more(count: int, ack: str, capsys: Capture) -> None:
    with FakeBroker([b"%d" % number for number in range(1000)]) as broker:
        assert main(["receive", "/queue/a", "--count", str(count), "--ack", ack, "--url", broker.url]) == 0
        conversation = broker.last
        if ack == "client-individual":
            assert conversation.delivered == count
            assert conversation.acked == [f"a{number + 1}" for number in range(count)]
        assert conversation.acked[-1] == f"a{count}"
    assert capsys.readouterr().out == "".join(f"{number}\n" for number in range(count))


def test_receive_says_when_too_few_came(capsys: Capture) -> None:
    with FakeBroker([b"one"]) as broker:
        assert main(["receive", "/queue/a", "--count", "2", "--timeout", "0.1", "--url", broker.url]) == 1
        assert broker.last.acked == ["a1"]
    assert capsys.readouterr().out == "one\n"


def test_receive_json_has_headers_and_body(capsys: Capture) -> None:
    with FakeBroker(["h\u00e9\n".encode(), b"\xff\0"]) as broker:
        assert main(["receive", "/queue/a", "--json", "--count", "2", "--url", broker.url]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    first, second = (json.loads(line) for line in out.strip().split("\n"))
    assert first["body"] == "h\u00e9\n" and first["headers"]["destination"] == "/queue/a"
    assert second["body_base64"] == "/wA=" and "body" not in second


def test_receive_auto_acknowledges_nothing() -> None:
    with FakeBroker([b"one"]) as broker:
        assert main(["receive", "/queue/a", "--ack", "auto", "--timeout", "0.1", "--url", broker.url]) == 0
        assert "prefetch" not in broker.last.subscribes[0]
        assert broker.last.acked == []


def test_receive_passes_prefetch_and_headers_on() -> None:
    with FakeBroker([b"1", b"2", b"3"]) as broker:
        words = ["receive", "/queue/a", "--prefetch", "2", "--header", "selector:a = 1", "--timeout", "0.1"]
        assert main([*words, "--url", broker.url]) == 0
        assert broker.last.subscribes[0]["prefetch"] == "2"
        assert broker.last.subscribes[0]["selector"] == "a = 1"
        assert broker.last.acked == ["a1", "a2", "a3"]


def test_what_could_not_be_printed_is_never_acknowledged(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Full(io.BytesIO):
        def writelines(self, lines: object) -> None:
            raise OSError(28, "No space left on device")

    class Out(io.StringIO):
        buffer = Full()

    with FakeBroker([b"one", b"two"]) as broker:
        monkeypatch.setattr(sys, "stdout", Out())
        assert main(["receive", "/queue/a", "--url", broker.url]) == 74
        assert broker.last.acked == []
    assert "No space left" in capsys.readouterr().err


# Whole processes: signals and pipes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_quiet_and_what_was_printed_is_acknowledged(number: signal.Signals) -> None:
    with FakeBroker([b"one", b"two"]) as broker:
        process = start("receive", "/queue/a", "--count", "5", "--url", broker.url)
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        assert process.stdout.readline() == b"two\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (128 + number, b"", b"")
        assert broker.last.acked == ["a1", "a2"]


def test_a_closed_pipe_is_quiet_and_what_it_did_not_take_stays() -> None:
    with FakeBroker([bytes(100_000)] * 50) as broker:
        process = start("receive", "/queue/a", "--url", broker.url)
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1) == b"\0"
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""
        process.stderr.close()
        assert len(broker.last.acked) < 50


def test_python_m_broker_is_stompd() -> None:
    process = start("--version")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, f"stompd {__version__}\n".encode(), b"")


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_on_a_terminal_after_a_while_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("broker.cli.progress.time.monotonic", lambda: now[0])
    terminal = Terminal()
    progress = Progress("sent", 2000, stream=terminal)
    progress.update(10)
    assert terminal.getvalue() == ""
    now[0] += 2
    progress.update(1000)
    assert "1,000 of 2,000 sent, 500/s" in terminal.getvalue()
    progress.clear()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("stream, quiet", [(io.StringIO(), False), (Terminal(), True)])
def test_progress_is_silent_elsewhere(
    stream: io.StringIO, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("broker.cli.progress.time.monotonic", lambda: now[0])
    progress = Progress("sent", stream=stream, quiet=quiet)
    now[0] += 60
    progress.update(1000)
    progress.clear()
    assert stream.getvalue() == ""
