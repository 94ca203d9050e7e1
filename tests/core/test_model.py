"""Random clients against the model: batches complete when the seed says so, and the broker dies now and then.

A seed is replayed by `pytest "tests/core/test_model.py" -k "[17]"`.
"""

from __future__ import annotations

import contextlib
import errno
from random import Random

import pytest

from tests.core.model import Message, Model, Peer, Sub, Tx
from tests.core.world import Client, World, drain
from tests.support.simdisk import PowerLoss

QUEUES = ("a", "b")
STEPS = 160


class Driver:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        # Small segments roll and go away all the time, a small output makes consumers wait for room.
        self.world = World(
            seed,
            auto=False,
            storage={"segment_size": self.random.choice((8, 64, 256)) * 1024},
            limits={"output": self.random.choice((1000, 64 * 1024))},
        )
        self.model = Model()
        self.clients: dict[Peer, Client] = {}
        self.sticky = seed % 3 == 0  # clients stop reading now and then
        self.serial = 0
        self.names = 0

    # --- what clients do

    def step(self) -> None:
        self.model.step += 1
        actions = {
            self.turn: 20, self.complete: 14, self.connect: 4, self.subscribe: 8, self.send: 22, self.acknowledge: 24,
            self.begin: 6, self.commit: 6, self.abort: 2, self.unsubscribe: 3, self.late_ack: 3, self.leave: 2,
            self.restart: 2, self.stick: 5 * self.sticky,
        }  # fmt: skip
        self.random.choices(list(actions), list(actions.values()))[0]()
        self.observe()

    def pick(self) -> tuple[Peer, Client] | None:
        return self.random.choice(list(self.clients.items())) if self.clients else None

    def receipt(self, peer: Peer, then: object = None) -> dict[str, str]:
        if self.random.random() < 0.4:
            return {}
        self.names += 1
        peer.receipts.append((str(self.names), then if callable(then) else lambda: None))
        return {"receipt": str(self.names)}

    def connect(self) -> None:
        if len(self.clients) < 5:
            self.names += 1
            peer = Peer(self.model, self.names)
            self.model.peers.append(peer)
            self.clients[peer] = self.world.connect()

    def subscribe(self) -> None:
        if (chosen := self.pick()) is None or len(chosen[0].subs) >= 2:
            return
        peer, client = chosen
        self.names += 1
        mode = self.random.choices(("client-individual", "client", "auto"), (5, 3, 1))[0]
        queue = self.random.choice((*QUEUES, "DLQ.a") if self.random.random() < 0.2 else QUEUES)
        sub = Sub(queue, mode, self.random.choice((1, 2, 5, 50)))
        peer.subs[f"s{self.names}"] = sub
        client.subscribe(f"/queue/{queue}", f"s{self.names}", mode, sub.prefetch)

    def send(self) -> None:
        if (chosen := self.pick()) is None:
            return
        peer, client = chosen
        name, tx = self.some_tx(peer)
        for _ in range(self.random.choice((1, 1, 1, 3, 8))):
            self.serial += 1
            message = Message(
                f"p{peer.number}.{self.serial}", self.random.choice(QUEUES), persistent=self.random.random() < 0.8
            )
            # What lies in a socket that nobody reads was delivered, as the broker sees it.
            message.flag_unsure = self.sticky
            self.model.messages[message.body] = message
            headers = {} if message.persistent else {"persistent": "false"}

            def kept(message: Message = message) -> None:
                message.kept = True

            if tx is None:
                self.model.accept(message)
                headers |= self.receipt(peer, kept)
            else:
                tx.sends.append(message)
                headers |= {"transaction": name, **self.receipt(peer)}
            client.publish(f"/queue/{message.queue}", message.body, **headers)

    def some_tx(self, peer: Peer) -> tuple[str, Tx | None]:
        if peer.open and self.random.random() < 0.6:
            return self.random.choice(list(peer.open.items()))
        return "", None

    def acknowledge(self) -> None:
        if (chosen := self.pick()) is None:
            return
        peer, client = chosen
        free = [
            (sub, message, id)
            for sub in peer.subs.values()
            for body, (message, id) in sub.unacked.items()
            if body not in sub.held
        ]
        for _ in range(self.random.choice((1, 1, 4))):
            if not free:
                return
            sub, message, id = free.pop(self.random.randrange(len(free)))
            if message.body not in sub.unacked or message.body in sub.held:
                continue
            command = self.random.choices(("ACK", "NACK"), (3, 1))[0]
            name, tx = self.some_tx(peer)
            done = peer.ack(sub, message, command, tx)

            def kept(done: list[Message] = done) -> None:
                for each in done:
                    each.ack_kept = True

            headers = {"transaction": name} if tx is not None else {}
            if command == "NACK" and self.random.random() < 0.2:
                headers["requeue"] = "false"
            client.ack(id, command, **headers, **self.receipt(peer, kept))

    def begin(self) -> None:
        if (chosen := self.pick()) is not None:
            self.names += 1
            chosen[0].open[f"t{self.names}"] = Tx()
            chosen[1].send("BEGIN", {"transaction": f"t{self.names}"})

    def commit(self) -> None:
        if (chosen := self.pick()) is not None and chosen[0].open:
            peer, client = chosen
            name = self.random.choice(list(peer.open))
            kept = peer.commit(peer.open.pop(name))
            client.send("COMMIT", {"transaction": name, **self.receipt(peer, kept)})

    def abort(self) -> None:
        # What came meanwhile on the credit that an ABORT takes back must have been seen first.
        if (chosen := self.pick()) is not None and chosen[0].open and not chosen[1].stuck:
            peer, client = chosen
            name = self.random.choice(list(peer.open))
            peer.abort(peer.open.pop(name))
            client.send("ABORT", {"transaction": name, **self.receipt(peer)})

    def stick(self) -> None:
        if (chosen := self.pick()) is not None:
            client = chosen[1]
            if client.stuck:
                client.read()
            else:
                client.stuck = True

    def unsubscribe(self) -> None:
        if (chosen := self.pick()) is not None and chosen[0].subs and not chosen[1].stuck:
            peer, client = chosen
            id = self.random.choice(list(peer.subs))
            client.send("UNSUBSCRIBE", {"id": id, **self.receipt(peer)})
            peer.unsubscribe(id)

    def late_ack(self) -> None:
        if (chosen := self.pick()) is None or not chosen[0].late:
            return
        if any(client.stuck for client in self.clients.values()):
            return  # it may be about a message that lies there unread
        peer, client = chosen
        message, id = self.random.choice(peer.late)
        peer.late = [pair for pair in peer.late if pair[0] is not message]  # a second one would be an error
        if any(message.body in sub.unacked for sub in peer.subs.values()):
            return  # this connection has it again: the ACK would be about that delivery
        again = message.owner
        self.model.acknowledge(message)
        client.ack(id, **self.receipt(peer, lambda: setattr(message, "ack_kept", True)))
        if again is not None and again.mode == "client-individual" and not again.held:
            message.owner = again  # it may still say what it likes about it

    def leave(self) -> None:
        if (chosen := self.pick()) is None:
            return
        peer, client = chosen
        if client.stuck or self.random.random() < 0.5:
            client.lose()
        else:
            client.disconnect()
            self.world.run()
            said = client.take("RECEIPT")
            assert said.pop()["receipt-id"] == "bye"
            for frame in client.take() + said:
                peer.got(frame)
            assert not peer.receipts, f"the receipt of DISCONNECT came before {peer.receipts}"
            client.lose()
        peer.end()
        self.model.peers.remove(peer)
        del self.clients[peer]

    # --- what the world does

    def turn(self) -> None:
        self.world.turn()

    def complete(self) -> None:
        self.world.complete()
        self.world.flush()

    def restart(self) -> None:
        how = self.random.choice(("clean", "kill", "power", "torn", "failed"))
        if how == "clean":
            for client in self.clients.values():
                client.session.shut_down(innocent=True)
            self.world.run()
            self.observe()
        if how == "torn":
            # The power goes in the middle of a batch, at one of the calls that it takes.
            self.world.turn()
            self.world.disk.power_at = self.world.disk.calls + self.random.randrange(1, 8)
            with contextlib.suppress(PowerLoss):
                self.world.complete()
            self.world.flush()
            self.observe()
        if how == "failed":
            self.world.turn()
            self.observe()
            if self.world.complete(OSError(errno.EIO, "the disk is broken")):
                self.world.flush()
                receipts = [f for client in self.clients.values() for f in client.take("RECEIPT")]
                assert not receipts, f"receipted after the storage has failed: {receipts}"
        self.model.stopped(clean=how == "clean")
        self.clients.clear()
        self.world.restart(how if how in ("clean", "kill") else "power")

    def observe(self) -> None:
        for peer, client in self.clients.items():
            frames, client.frames = client.frames, []
            for frame in frames:
                peer.got(frame)

    def finish(self) -> None:
        for client in self.clients.values():
            client.read()
        self.world.run()
        self.observe()
        for peer, client in self.clients.items():
            client.lose()
            peer.end()
        self.clients.clear()
        self.world.run()
        self.model.step += 1
        drained = {}
        for queue in (f"/queue/{dead}{name}" for name in QUEUES for dead in ("", "DLQ.")):
            sub = Sub(queue.removeprefix("/queue/"), "client-individual", 10_000)
            self.world.auto = True
            drained[queue] = drain(self.world, queue)
            for frame in drained[queue]:
                self.model.delivered(sub, frame)
        self.model.finish(drained)
        for each in self.world.broker.queues.values():
            assert (each.in_flight, each.pending, each.marked) == (0, 0, 0), each.name
        assert self.world.budget.used == 0
        assert sum(segment.live for segment in self.world.journal.segments) == 0


@pytest.mark.parametrize("seed", range(300))
def test_random_clients_and_crashes_never_break_a_promise(seed: int) -> None:
    driver = Driver(seed)
    for _ in range(STEPS):
        driver.step()
    driver.finish()
