"""Protocol cases as tables: a name, the clause that it shows, and what is said and answered in turn.

In what a client says, `<q>` is a queue of the case alone, `<t>` such a topic, `<name>` a value that
`Save("name")` kept from an earlier answer. In what is expected, a value is a text, ANY, NONE (the header is
absent), a compiled pattern, or a Save.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.wire import Got, Wire, WireError, close_all

ANY = re.compile(".*", re.DOTALL)
NONE = None


@dataclass(frozen=True)
class Save:
    """Expect the header and keep its value under this name."""

    name: str


Value = str | re.Pattern[str] | Save | None
Headers = Mapping[str, Value]


@dataclass
class Scene:
    """What one run of a case knows: its connections by name and the values it kept."""

    address: tuple[str, int]
    saved: dict[str, str]
    wires: dict[str, Wire] = field(default_factory=dict)

    def wire(self, who: str) -> Wire:
        if who not in self.wires:
            self.wires[who] = Wire(self.address)
        return self.wires[who]

    def fill(self, text: str) -> str:
        return re.sub("<([a-z0-9]+)>", lambda match: self.saved.get(match[1], match[0]), text)


Step = Callable[[Scene], None]


@dataclass(frozen=True)
class Case:
    """`clause`: version and section, e.g. "1.2 SUBSCRIBE". `musts`: the ids of musts.py that it shows."""

    name: str
    clause: str
    steps: tuple[Step, ...]
    musts: tuple[str, ...] = ()

    def run(self, address: tuple[str, int], word: str) -> None:
        scene = Scene(address, {"q": f"/queue/{word}", "t": f"/topic/{word}", "word": word})
        try:
            for number, step in enumerate(self.steps):
                try:
                    step(scene)
                except (WireError, OSError) as error:
                    raise WireError(f"step {number + 1} of {len(self.steps)}: {error}") from error
        finally:
            close_all(scene.wires.values())


def case(name: str, clause: str, *steps: Step, musts: str = "") -> Case:
    """A case; `musts` holds ids parted by spaces."""
    return Case(name, clause, steps, tuple(musts.split()))


def tcp(who: str = "a") -> Step:
    """Open the socket and say nothing."""

    def step(scene: Scene) -> None:
        scene.wire(who)

    return step


def up(version: str = "1.2", who: str = "a", **headers: str) -> Step:
    """Connect in that version."""

    def step(scene: Scene) -> None:
        scene.wire(who).connect(version, {key.replace("_", "-"): value for key, value in headers.items()})

    return step


def c(data: str | bytes, who: str = "a") -> Step:
    """The client sends these bytes."""

    def step(scene: Scene) -> None:
        scene.wire(who).send(scene.fill(data).encode() if isinstance(data, str) else data)

    return step


def s(
    command: str,
    headers: Headers | None = None,
    body: str | bytes | None = None,
    who: str = "a",
    version: str = "",
) -> Step:
    """The next frame from the broker is this one. `version`: set what the connection speaks from here on."""

    def step(scene: Scene) -> None:
        wire = scene.wire(who)
        got = wire.expect(command)
        check(scene, got, headers or {}, body)
        if version:
            wire.version = version

    return step


def check(scene: Scene, got: Got, headers: Headers, body: str | bytes | None) -> None:
    for name, wanted in headers.items():
        found = got.get(name)
        if wanted is None:
            if found is not None:
                raise WireError(f"header {name!r} must not be there: {got}")
            continue
        if found is None:
            raise WireError(f"no header {name!r} in {got}")
        if isinstance(wanted, Save):
            scene.saved[wanted.name] = found
        elif isinstance(wanted, re.Pattern):
            if not wanted.fullmatch(found):
                raise WireError(f"header {name!r} is {found!r}, not {wanted.pattern!r}, in {got}")
        elif found != scene.fill(wanted):
            raise WireError(f"header {name!r} is {found!r}, not {scene.fill(wanted)!r}, in {got}")
    if body is not None:
        expected = scene.fill(body).encode() if isinstance(body, str) else body
        if got.body != expected:
            raise WireError(f"body is {got.body[:200]!r}, not {expected[:200]!r}, in {got.headers}")


def error(headers: Headers | None = None, who: str = "a") -> Step:
    """An ERROR with a `message`, then the close, as the specifications want."""

    def step(scene: Scene) -> None:
        wire = scene.wire(who)
        got = wire.expect("ERROR")
        check(scene, got, {"message": re.compile(".+"), **(headers or {})}, None)
        wire.expect_closed()

    return step


def closed(who: str = "a") -> Step:
    """Nothing more comes but the end of the stream."""

    def step(scene: Scene) -> None:
        scene.wire(who).expect_closed()

    return step


def hang_up(who: str = "a") -> Step:
    """The client closes its socket."""

    def step(scene: Scene) -> None:
        scene.wires.pop(who).close()

    return step


def receipt(name: str, who: str = "a") -> Step:
    """The next frame is this RECEIPT."""
    return s("RECEIPT", {"receipt-id": name}, b"", who=who)


def receipt_among(name: str, who: str = "a") -> Step:
    """This RECEIPT comes; a MESSAGE may come before it and is kept for the steps that follow."""

    def step(scene: Scene) -> None:
        scene.wire(who).receipt(name)

    return step


def leave(who: str = "a") -> Step:
    """DISCONNECT with its receipt, whatever is still delivered before it, and the close."""

    def step(scene: Scene) -> None:
        wire = scene.wire(who)
        wire.call("DISCONNECT")
        wire.pending.clear()
        wire.expect_closed()

    return step


def put(
    *bodies: str, to: str = "<q>", who: str = "producer", headers: Mapping[str, str] | None = None
) -> Step:
    """Another connection sends these bodies and has the receipts."""

    def step(scene: Scene) -> None:
        if who not in scene.wires:
            scene.wire(who).connect("1.2")
        for body in bodies:
            fields = {name: scene.fill(value) for name, value in (headers or {}).items()}
            scene.wire(who).call("SEND", {"destination": scene.fill(to), **fields}, scene.fill(body).encode())

    return step


def left(*bodies: str, at: str = "<q>") -> Step:
    """A fresh consumer gets exactly these bodies from the queue, in this order, before a marker sent now."""

    def step(scene: Scene) -> None:
        with borrowed(scene) as wire:
            marker = f"marker-{len(bodies)}"
            wire.publish(scene.fill(at), marker)
            wire.subscribe(scene.fill(at))
            expected = [*(scene.fill(body) for body in bodies), marker]
            found: list[str] = []
            while not found or found[-1] != marker:
                found.append(wire.expect("MESSAGE").body.decode())
            if found != expected:
                raise WireError(f"in {scene.fill(at)} there was {found}, not {expected}")

    return step


@contextmanager
def borrowed(scene: Scene) -> Iterator[Wire]:
    with Wire(scene.address) as wire:
        wire.connect("1.2")
        yield wire
