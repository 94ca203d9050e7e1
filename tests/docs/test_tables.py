"""Tables of the pages say what the code does."""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from collections.abc import Iterator

import pytest

from broker import __version__
from broker.admin import Phase, answer
from broker.cli.entry import COMMANDS
from broker.core import catalogue, intake, settling, topics
from broker.errors import Exit, NotStomp, ProtocolError
from broker.server.logs import LEVELS
from broker.session import NEXT, consuming
from broker.session.connecting import storage_error
from broker.session.sending import BROKERS_OWN, STEERING
from broker.stomp.opening import EOLS_BEFORE_CONNECT
from tests.docs.pages import ROOT, Page

README = Page("README.md")
PROTOCOL = Page("docs/protocol.md")
OPERATIONS = Page("docs/operations.md")
ARCHITECTURE = Page("docs/architecture.md")


def all_kinds(kind: type[ProtocolError]) -> Iterator[type[ProtocolError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from all_kinds(child)


def test_every_error_text_is_on_the_protocol_page_and_no_other() -> None:
    storage = re.search(rb"\nmessage:([^\n]*)\n", storage_error(None))
    assert storage is not None
    said = {kind.summary for kind in all_kinds(ProtocolError)} | {storage[1].decode()}
    rows = [row[0] for row in PROTOCOL.table("ERROR", "`message`")]
    assert sorted(rows) == sorted(said)
    assert NotStomp.summary in said


def test_the_fixed_numbers_are_those_of_the_code() -> None:
    numbers = {row[0]: int(row[1].split()[0]) for row in PROTOCOL.table("Limits", "what")}
    assert numbers == {
        "failures before a message is a dead letter": settling.MAX_DELIVERIES,
        "messages kept for a slow topic subscriber": topics.TOPIC_BACKLOG,
        "a queue that is not used is forgotten after": catalogue.QUEUE_IDLE,
        "messages in one record of the journal": intake.RECORD_MESSAGES,
        "EOLs before CONNECT": EOLS_BEFORE_CONNECT,
        "deliveries of ended subscriptions that a late ACK may name": consuming._LATE_MAX,
    }


def test_every_header_that_only_the_broker_may_say_is_on_the_page() -> None:
    text = PROTOCOL.section("SEND").partition("are taken out")[2]
    named = set(re.findall(r"`([A-Za-z*-]+)`", text))
    dead = {name for name in BROKERS_OWN if name.startswith("dead-letter-")}
    assert named == (BROKERS_OWN - dead) | {"dead-letter-*"}


def test_every_header_of_send_that_the_session_looks_at_is_on_the_page() -> None:
    text = PROTOCOL.section("SEND")
    for name in STEERING:
        assert f"`{name}`" in text or name.startswith("dead-letter-"), name


def test_every_limit_of_the_page_is_a_setting() -> None:
    configuration = Page("docs/configuration.md").text
    for page in (PROTOCOL, OPERATIONS, ARCHITECTURE, README):
        for key in set(re.findall(r"`((?:limits|memory|storage|shutdown|access|log)\.[a-z_]+)`", page.text)):
            assert f"| `{key}` |" in configuration, key


def logged() -> dict[str, str]:
    """Event name -> level, of every event that the package writes. Each name must be a literal."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "broker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("event", "_write") or len(node.args) < 3:
                continue
            level, name = node.args[:2]
            if node.func.attr == "_write" and not isinstance(name, ast.Constant):
                continue  # the log hands on what `event` was given
            assert isinstance(level, ast.Constant) and level.value in LEVELS, f"{path}:{node.lineno}"
            assert isinstance(name, ast.Constant) and isinstance(name.value, str), f"{path}:{node.lineno}"
            found[name.value] = level.value
    return found


def test_every_event_of_the_log_is_explained_and_no_other() -> None:
    events = logged()
    assert "listening" in events and "suppressed" in events  # the collector sees both kinds of call
    rows = {row[0]: row[1] for row in OPERATIONS.table("Log lines", "event")}
    assert rows == events


def test_every_event_has_something_to_do() -> None:
    for row in OPERATIONS.table("Log lines", "event"):
        assert len(row) == 4 and all(row), row


def test_every_exit_code_is_explained_and_no_other() -> None:
    rows = [int(row[0]) for row in OPERATIONS.table("Exit codes", "code")]
    assert rows == sorted({int(code) for code in Exit})


def test_the_page_for_damaged_data_is_where_the_error_points() -> None:
    # The text of exit 65 names the page and the heading.
    source = (ROOT / "broker/journal/findings.py").read_text()
    assert 'docs/operations.md, "Damaged data"' in source
    assert "65" in OPERATIONS.section("Damaged data")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_the_health_table_is_what_is_answered(path: str) -> None:
    rows = {row[0]: row for row in OPERATIONS.table("Health", "path")}
    if path == "/healthz":
        assert all(answer(path, phase) == answer("/readyz", phase) for phase in Phase)
        assert "`/readyz`" in rows[path][1] or "/readyz" in rows[path][1]
        return
    bad = {text for status, text in (answer(path, phase) for phase in Phase) if status == 503}
    assert set(re.findall(r"[a-z]+", rows[path][2])) == bad


def test_the_state_table_is_the_one_of_the_session() -> None:
    rows = [tuple(row) for row in ARCHITECTURE.table("The states of a conversation", "state")]
    assert rows == [(state.name, frame, after.name) for (state, frame), after in NEXT.items()]


def test_every_command_is_named_where_people_look() -> None:
    for name in COMMANDS:
        assert f"`{name}`" in ARCHITECTURE.text, name
        assert f"`{name}`" in Page("CHANGELOG.md").text, name


def test_pages_name_no_command_that_is_not_there() -> None:
    names = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
    for name in names:
        for command in re.findall(r"(?:python3 -m broker|`stompd|bin/stompd) ([a-z-]+)", Page(name).text):
            assert command in COMMANDS or command == "--version", f"{name}: {command}"


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"\b{re.escape(__version__)}\b", Page("CHANGELOG.md").text)


def test_the_test_command_of_the_readme_fits_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "test" in project["project"]["optional-dependencies"]
    command = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest -q"
    for name in ("README.md", "CONTRIBUTING.md"):
        assert command in Page(name).text, name
    assert project["project"]["readme"] == "README.md"
    assert project["project"]["requires-python"] == ">=3.11"


def test_the_unit_restarts_only_what_a_restart_can_mend() -> None:
    blocks = [block for block in OPERATIONS.blocks("systemd") if block.kind == "ini"]
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(blocks[0].text)
    never = {int(code) for code in unit["Service"]["RestartPreventExitStatus"].split()}
    assert never == {Exit.USAGE, Exit.DAMAGED, Exit.CONFIG_REFUSED}
    assert unit["Service"]["Restart"] == "on-failure"


def test_what_docker_is_told_fits_the_dockerfile() -> None:
    text = (ROOT / "Dockerfile").read_text()
    run = next(block.text for block in OPERATIONS.blocks("Docker") if "docker run" in block.text)
    volume = re.search(r"-v [a-z-]+:(\S+)", run)
    assert volume is not None and f'VOLUME ["{volume[1]}"]' in text
    ports = re.findall(r"-p 127\.0\.0\.1:\d+:(\d+)", run)
    assert f"EXPOSE {' '.join(ports)}" in text
    uid = re.search(r"\(uid (\d+)\)", OPERATIONS.text)
    assert uid is not None and f"--uid {uid[1]}" in text
