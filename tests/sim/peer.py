"""A simulated client: it says what the seed lets it say, and remembers what it has seen."""

from __future__ import annotations

from random import Random

from tests.sim.line import Line
from tests.sim.swarm import Swarm
from tests.sim.view import Delivery, View
from tests.support.history import What
from tests.support.wire import Got, frame

BAD = (b"SEND\nno destination\n\n\0", b"ACK\nid:nobody\n\n\0", b"HELLO\n\n\0", b"SEND\ndestination:/nowhere\n\n\0")


class Peer:
    def __init__(self, line: Line, random: Random, swarm: Swarm) -> None:
        self.line = line
        self.random = random
        self.swarm = swarm
        self.version = random.choice(swarm.versions)
        self.view = View()  # as of what it has said and seen
        self.silent = False  # it has said its last word, or was told off
        self.reads = True
        self.replies: list[str] = []  # temporary queues that somebody wants an answer in
        self._names = 0
        self.say("CONNECT", {"accept-version": self.version, "host": "sim"})

    def name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"

    def say(self, command: str, headers: dict[str, str], body: bytes = b"", deed: object = None) -> None:
        self.line.say(frame(command, headers, body, self.version), deed)  # type: ignore[arg-type]

    def receipt(self, headers: dict[str, str], odds: float = -1.0) -> str:
        """Perhaps ask for one; its name, "" for none."""
        if self.random.random() >= (self.swarm.receipts if odds < 0 else odds):
            return ""
        headers["receipt"] = name = self.name("r")
        return name

    # --- what comes

    def see(self, got: Got) -> None:
        if got.command == "MESSAGE":
            delivery = self.line.delivery(got, self.view)
            self.view.delivered(got["subscription"], delivery)
            if (reply_to := got.get("reply-to")) and reply_to not in self.replies:
                self.replies.append(reply_to)
        elif got.command == "ERROR":
            self.silent = True

    # --- what it does

    def act(self, action: str) -> bool:
        """Returns whether there was anything to do."""
        if self.view.late and self.random.random() < 0.5 and self.swarm.weights["late"]:
            action = "late"  # before somebody else has it for long
        return not self.silent and bool(getattr(self, f"_{action}")())

    def transaction(self) -> str:
        if self.view.open and self.random.random() < 0.6:
            return self.random.choice(list(self.view.open))
        return ""

    def _send(self) -> bool:
        random, swarm = self.random, self.swarm
        queue = f"/queue/{random.choice(swarm.queues)}"
        if swarm.topics and random.random() < 0.4:
            queue = f"/topic/{random.choice(('t.x', 't.y', 'u'))}"
        headers = {"destination": queue}
        if random.random() < swarm.volatile:
            headers["persistent"] = "false"
        if random.random() < 0.2:
            headers["kind"] = random.choice(("a", "b:c", "d\ne", "ü"))
            if self.version == "1.0":
                headers["kind"] = "a"
        if swarm.temporary and random.random() < 0.2:
            headers["reply-to"] = "/temp-queue/r"
            self._expect_replies()
        transaction = self.transaction()
        for _ in range(random.choice((1, 1, 1, 3, 8, 40))):
            self._say_send(queue, headers, transaction)
        return True

    def _expect_replies(self) -> None:
        # The broker subscribes for it, with ack:auto and the name as its id.
        if "/temp-queue/r" not in self.view.subs:
            queue = f"/temp-queue/{self.line.session.token}.r"
            self.view.subscribe("/temp-queue/r", queue, "auto")
            self.line.say(b"\n", lambda line: line.subscribe("/temp-queue/r", queue, "auto", 0, ""))

    def _say_send(self, queue: str, common: dict[str, str], transaction: str) -> None:
        random = self.random
        headers = dict(common)
        name = self.name(f"{self.line.name}.")
        if random.random() < 0.1:
            headers["own"] = name
        kept = {key: value for key, value in headers.items() if key in ("kind", "own")}
        if transaction:
            headers["transaction"] = transaction
            self.view.open[transaction].sends += 1
        receipt = self.receipt(headers)
        size = random.randrange(self.swarm.body + 1)
        body = name.encode() + b"|" + bytes([97 + size % 26]) * size
        self.line.shell.sent[name] = (body, kept)
        persistent = headers.get("persistent") != "false"

        def deed(line: Line) -> None:
            line.log(
                What.SEND, name, queue=queue, transaction=transaction, receipt=receipt, persistent=persistent
            )

        self.say("SEND", headers, body, deed)

    def _reply(self) -> bool:
        if not self.replies:
            return False
        queue = self.random.choice(self.replies)
        self._say_send(queue, {"destination": queue}, self.transaction())
        return True

    def _settle(self) -> bool:
        random = self.random
        free = [
            (sub.name, delivery)
            for sub in self.view.subs.values()
            for message, delivery in sub.unacked.items()
            if message not in sub.held
        ]
        if not free:
            return False
        count = random.choice((1, 1, 4, len(free)))
        start = random.randrange(len(free)) if random.random() < 0.3 else 0
        command = random.choices(("ACK", "NACK"), (5, 1))[0]
        if self.version == "1.0":
            command = "ACK"
        transaction = self.transaction()
        for sub, delivery in free[start : start + count]:
            if delivery.message in self.view.subs[sub].unacked:  # else a cumulative one has covered it
                self._say_settle(command, sub, delivery, transaction)
        return True

    def _say_settle(self, command: str, sub: str, delivery: Delivery, transaction: str) -> None:
        random, message = self.random, delivery.message
        held = sub in self.view.subs and message in self.view.subs[sub].held
        if held:
            return
        headers = {"id": delivery.id}
        if self.version != "1.2":
            headers = {"message-id": delivery.id, "subscription": sub}
        elif random.random() < 0.5:
            headers["subscription"] = sub
        if transaction:
            headers["transaction"] = transaction
        requeue = command == "ACK" or random.random() >= self.swarm.dead
        if not requeue:
            headers["requeue"] = "false"
        receipt = self.receipt(headers)
        self.view.settle(sub, message, transaction)
        self.say(
            command, headers, deed=lambda line: line.settle(command, sub, message, transaction, receipt, requeue)
        )

    def _late(self) -> bool:
        if not self.view.late:
            return False
        message = self.random.choice(list(self.view.late))
        delivery = self.view.late[message]
        sub = next(
            (name for name, sub in self.view.ended.items() if message in sub.unacked), next(iter(self.view.ended))
        )
        self._say_settle(self.random.choices(("ACK", "NACK"), (6, 1))[0], sub, delivery, self.transaction())
        return True

    def _subscribe(self) -> bool:
        random, swarm = self.random, self.swarm
        if len(self.view.subs) >= 3:
            return False
        name = self.name("s")
        queue = f"/queue/{random.choice(swarm.queues)}"
        destination = queue
        if swarm.topics and random.random() < 0.4:
            destination = queue = f"/topic/{random.choice(('t.x', 't.*', '#', 'u', 't.>'))}"
        elif swarm.temporary and random.random() < 0.2:
            destination, queue = "/temp-queue/q", f"/temp-queue/{self.line.session.token}.q"
        elif random.random() < 0.15:
            destination = queue = queue.replace("/queue/", "/queue/DLQ.")
        mode = random.choices(("client-individual", "client", "auto"), (5, 3, 1))[0]
        prefetch = random.choice((1, 2, 5, 50))
        headers = {"destination": destination, "id": name, "ack": mode, "prefetch": str(prefetch)}
        receipt = self.receipt(headers)
        self.view.subscribe(name, queue, mode)
        self.say("SUBSCRIBE", headers, deed=lambda line: line.subscribe(name, queue, mode, prefetch, receipt))
        return True

    def _unsubscribe(self) -> bool:
        names = [name for name in self.view.subs if name.startswith("s")]
        if not names:
            return False
        name = self.random.choice(names)
        headers = {"id": name}
        receipt = self.receipt(headers)
        self.view.unsubscribe(name)
        self.say("UNSUBSCRIBE", headers, deed=lambda line: line.unsubscribe(name, receipt))
        return True

    def _begin(self) -> bool:
        if len(self.view.open) >= 3:
            return False
        name = self.name("t")
        headers = {"transaction": name}
        receipt = self.receipt(headers)
        self.view.begin(name)
        self.say("BEGIN", headers, deed=lambda line: line.begin(name, receipt))
        return True

    def _commit(self) -> bool:
        return self._end("COMMIT")

    def _abort(self) -> bool:
        return self._end("ABORT")

    def _end(self, command: str) -> bool:
        if not self.view.open:
            return False
        name = self.random.choice(list(self.view.open))
        headers = {"transaction": name}
        receipt = self.receipt(headers)
        if command == "COMMIT":
            self.view.commit(name)
            self.say(command, headers, deed=lambda line: line.commit(name, receipt))
        else:
            self.view.abort(name)
            self.say(command, headers, deed=lambda line: line.abort(name, receipt))
        return True

    def _leave(self) -> bool:
        """DISCONNECT, or no word and the end of its output."""
        self.silent = True
        if self.random.random() < 0.6:
            headers: dict[str, str] = {}
            receipt = self.receipt(headers, 0.8)
            self.say("DISCONNECT", headers, deed=lambda line: line.goodbye(receipt))
        else:
            self.line.say(b"", None)
        return True

    def _garbage(self) -> bool:
        self.silent = True
        self.line.say(self.random.choice(BAD), None)
        return True

    def _stick(self) -> bool:
        self.reads = not self.reads
        return True
