"""The conversations on docs/protocol.md are what is said."""

from __future__ import annotations

import re
import socket
import time

from tests.docs.pages import Block, Page
from tests.support.process import BrokerProcess

SECONDS = 10.0
PLACE = re.compile(r"<([a-z]+)>")
ONCE = ("session", "id", "milliseconds")  # differ each time, also where the page uses the name again


class Conversation:
    """One connection. Names in <...> are learnt from what the broker says, and may be said to it later."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, SECONDS)
        self._known: dict[str, str] = {}
        self._rest = b""

    def say(self, text: str) -> None:
        text = PLACE.sub(lambda match: self._known[match[1]], text)
        self._socket.sendall(text.replace("^@", "\0").encode())

    def hear(self, text: str) -> None:
        """Every frame of the block, byte for byte but for the places."""
        for frame in re.findall(r".+?\^@\n", text, re.DOTALL):
            heard = self._frame()
            match = re.fullmatch(self._pattern(frame.replace("^@\n", "\0")), heard)
            if match is None:
                raise AssertionError(f"the page says\n{frame}\nthe broker said\n{heard}")
            self._known.update(match.groupdict())

    def _pattern(self, frame: str) -> str:
        pattern, end = "", 0
        for match in PLACE.finditer(frame):
            name = match[1]
            known = None if name in ONCE else self._known.get(name)
            place = re.escape(known) if known is not None else f"(?P<{name}>[^\\n]+)"
            pattern += re.escape(frame[end : match.start()]) + place
            end = match.end()
        return pattern + re.escape(frame[end:])

    def _frame(self) -> str:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            if time.monotonic() > deadline:
                raise AssertionError(f"no frame within {SECONDS} s, only {self._rest!r}")
            data = self._socket.recv(65536)
            if not data:
                raise AssertionError(f"closed, with {self._rest!r}")
            self._rest += data
        frame, _, self._rest = self._rest.partition(b"\0")
        return frame.lstrip(b"\n").decode() + "\0"

    def close(self) -> None:
        self._socket.close()


def conversations() -> list[list[Block]]:
    """Blocks of the page, a new conversation with each CONNECT."""
    found: list[list[Block]] = []
    for block in Page("docs/protocol.md").blocks():
        if block.kind == "stomp client" and block.text.startswith("CONNECT\n"):
            found.append([])
        if block.kind.startswith("stomp "):
            found[-1].append(block)
    return found


def test_every_conversation_of_the_page_goes_as_it_is_written(broker: BrokerProcess) -> None:
    assert len(conversations()) == 3
    for blocks in conversations():
        talk = Conversation(broker.address)
        try:
            for block in blocks:
                if block.kind == "stomp client":
                    talk.say(block.text)
                else:
                    talk.hear(block.text)
        finally:
            talk.close()
