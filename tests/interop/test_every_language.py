"""Clients of five languages send to and receive from each other, each over its newest version.

`python3 tools/interop.py` installs the libraries and runs all versions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(REPOSITORY), str(REPOSITORY / "tools")) if path not in sys.path]

from contenders import Stompd  # noqa: E402

from tests.interop import matrix  # noqa: E402
from tests.interop.catalogue import CLIENTS, Client, default_prefix  # noqa: E402

NEWEST = tuple({client.library: client for client in CLIENTS}.values())  # versions go up within a library


@pytest.fixture(scope="module")
def missing() -> dict[Client, str | None]:
    """Why each client cannot run here, None where it can."""
    return {client: client.missing(default_prefix()) for client in NEWEST}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a broker for this module."""
    with Stompd() as broker:
        yield broker.port


@pytest.fixture(scope="module")
def outcome(port: int, missing: dict[Client, str | None]) -> matrix.Outcome:
    """What came out when each client that is installed had sent to and received from each."""
    return matrix.run([client for client in NEWEST if missing[client] is None], port, default_prefix())


@pytest.mark.parametrize("client", NEWEST, ids=lambda client: client.name)
def test_a_client_of_any_language_talks_with_all_others(
    client: Client, missing: dict[Client, str | None], request: pytest.FixtureRequest
) -> None:
    if reason := missing[client]:
        pytest.skip(reason)
    result: matrix.Outcome = request.getfixturevalue("outcome")
    assert not result.of(client)
    senders = sum(found is None for found in missing.values())
    assert result.received[client.name] == len(matrix.BODIES) * senders


def test_every_frame_ends_with_an_eol_behind_its_nul_which_pecl_stomp_insists_on(port: int) -> None:
    with matrix.connected(port) as peer:
        peer.sendall(
            b"SUBSCRIBE\nid:0\ndestination:/queue/interop.ends\n\n\0"
            b"SEND\ndestination:/queue/interop.ends\nreceipt:one\n\nbody\0"
        )
        got = matrix.read_until(peer, b"body\0")
        peer.sendall(b"DISCONNECT\nreceipt:two\n\n\0")
        frames = (got + matrix.read_to_end(peer)).split(b"\0\n")
    assert {frame.partition(b"\n")[0] for frame in frames} == {b"CONNECTED", b"RECEIPT", b"MESSAGE", b""}
    with matrix.connected(port) as peer:
        peer.sendall(b"ACK\nid:nothing\n\n\0")
        assert matrix.read_to_end(peer).endswith(b"\0\n")


def test_a_message_that_nobody_acknowledged_is_found_on_its_queue(port: int) -> None:
    queue = "/queue/interop.self-test"
    assert matrix.left_over(queue, port) == b""
    matrix.put(queue, b"forgotten", port)
    assert b"forgotten" in matrix.left_over(queue, port)
    assert matrix.left_over(queue, port) == b""
