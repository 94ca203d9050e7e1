"""A broker of a few lines that keeps no promises: one thread, one queue a name, for tests of the client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from broker.stomp import AckRun, Frame, Parser, SendRun, Version, WireLimits, encode

Hook = Callable[["Conversation", str], bool]


@dataclass
class Conversation:
    """One connection as the broker saw it."""

    socket: socket.socket
    commands: list[str] = field(default_factory=list)
    # headers, body, whether it asked for a receipt
    sent: list[tuple[dict[str, str], bytes, bool]] = field(default_factory=list)
    subscribes: list[dict[str, str]] = field(default_factory=list)
    acked: list[str] = field(default_factory=list)
    login: dict[str, str] = field(default_factory=dict)
    credit: int = 0
    delivered: int = 0
    settled: int = 0

    def write(self, command: str, headers: list[tuple[str, str]], body: bytes = b"") -> None:
        self.socket.sendall(encode(Version.V1_2, command, headers, body))


class FakeBroker:
    """`waiting` goes to whoever subscribes, `prefetch` at a time. `hook` may answer itself: then True."""

    def __init__(self, waiting: list[bytes] | None = None, hook: Hook | None = None) -> None:
        self.waiting = deque(waiting or [])
        self.conversations: list[Conversation] = []
        self._hook = hook
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"stomp://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.failure: BaseException | None = None

    def __enter__(self) -> FakeBroker:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for conversation in self.conversations:
            with contextlib.suppress(OSError):
                conversation.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        if value is None and self.failure is not None:
            raise self.failure

    @property
    def last(self) -> Conversation:
        return self.conversations[-1]

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            conversation = Conversation(accepted)
            self.conversations.append(conversation)
            thread = threading.Thread(target=self._serve, args=(conversation,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, conversation: Conversation) -> None:
        parser = Parser(WireLimits(body=1 << 30))
        try:
            while data := conversation.socket.recv(1 << 16):
                items = parser.feed(data)
                while items:
                    for item in items:
                        if isinstance(item, Exception):
                            raise item
                        self._take(conversation, parser, item)
                    items = parser.resume()
                # As a real broker does: what is free is worked out when all that came together was read.
                if conversation.subscribes and conversation.commands[-1] != "DISCONNECT":
                    self._deliver(conversation)
        except OSError:
            pass
        except BaseException as error:
            self.failure = error
        finally:
            conversation.socket.close()

    def _take(self, conversation: Conversation, parser: Parser, item: SendRun | AckRun | Frame) -> None:
        if isinstance(item, SendRun):
            for index, body in enumerate(item.bodies):
                conversation.commands.append("SEND")
                headers = {**item.block.headers}
                for line in (item.owns[index] if item.owns else b"").decode().split("\n"):
                    if line:
                        headers[line.partition(":")[0]] = line.partition(":")[2]
                receipt = item.receipts[index].decode() if item.receipts else None
                conversation.sent.append((headers, body, receipt is not None))
                self._answer(conversation, "SEND", receipt)
            return
        if isinstance(item, AckRun):
            for name in item.ids:
                conversation.commands.append("ACK")
                conversation.acked.append(name.decode())
                if conversation.subscribes[-1]["ack"] == "client":  # and all before it
                    conversation.credit += int(name[1:]) - conversation.settled
                    conversation.settled = int(name[1:])
                else:
                    conversation.credit += 1
            return
        conversation.commands.append(item.command)
        if item.command == "CONNECT":
            conversation.login = item.headers
            parser.version = Version.V1_2
            if not self._hook or not self._hook(conversation, "CONNECT"):
                conversation.write("CONNECTED", [("version", "1.2"), ("heart-beat", "0,0")])
        elif item.command == "SUBSCRIBE":
            conversation.subscribes.append(item.headers)
            conversation.credit = int(item.headers.get("prefetch", "1000000"))
            if self._hook and self._hook(conversation, "SUBSCRIBE"):
                conversation.credit = 0
        else:
            self._answer(conversation, item.command, item.receipt.decode() if item.receipt else None)
            if item.command == "DISCONNECT":
                conversation.socket.shutdown(socket.SHUT_RDWR)

    def _answer(self, conversation: Conversation, command: str, receipt: str | None) -> None:
        if self._hook and self._hook(conversation, command):
            return
        if receipt is not None:
            conversation.write("RECEIPT", [("receipt-id", receipt)])

    def _deliver(self, conversation: Conversation) -> None:
        subscription = conversation.subscribes[-1]
        while self.waiting and conversation.credit > 0:
            conversation.delivered += 1
            headers = [("subscription", subscription["id"]), ("destination", subscription["destination"])]
            headers.append(("message-id", f"m{conversation.delivered}"))
            if subscription["ack"] != "auto":
                conversation.credit -= 1
                headers.append(("ack", f"a{conversation.delivered}"))
            conversation.write("MESSAGE", headers, self.waiting.popleft())
