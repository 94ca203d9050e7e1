"""Streams of frames as clients send them, drawn from a seed: a few kinds that repeat, values that vary."""

from __future__ import annotations

from random import Random

from broker.stomp import Version, WireLimits

NAMES = ("destination", "receipt", "x", "corr", "persistent", "content-length", "50%")
ODD_VALUES = (
    "b:c", "x y", " lead", "trail ", "\\c", "\\n", "\\\\", "é", "", "k" * 300, "k" * 39, "a\\cb\\\\", "%d",
    "\x7f",
)  # fmt: skip
WRONG_VALUES = ("\\r", "\\t", "zz\\", "\r", "a\rb", "\0", "\udcff", "\n", "\nq:1")
LIMITS = (WireLimits(), WireLimits(header_line=45, header_block=200, headers=6, body=300))


class Stream:
    """One connection's bytes. `wrong`: how likely a value or an octet is one that must be refused."""

    def __init__(self, seed: int, *, wrong: float = 0.0) -> None:
        random = self.random = Random(seed)
        self.wrong = wrong
        self.version = random.choice(list(Version))
        self.limits = LIMITS[random.random() < 0.3]
        self.eol = b"\r\n" if self.version is Version.V1_2 and random.random() < 0.4 else b"\n"
        self.gap = random.choice([b"", b"", b"\n", b"\r\n", b"\n\n"])
        self.kinds = [random.sample(NAMES, random.randrange(1, 6)) for _ in range(random.randrange(1, 4))]
        self.odd = random.choice([0.0, 0.01, 0.2])
        self.wire = b"".join(self._frame() for _ in range(random.randrange(1, 400)))

    def cuts(self) -> list[int]:
        count = self.random.choice([1, 5, 200])
        return [self.random.randrange(len(self.wire) + 1) for _ in range(count)]

    def _value(self, name: str) -> str:
        random = self.random
        if random.random() < self.wrong:
            return random.choice(WRONG_VALUES)
        if random.random() < self.odd:
            return random.choice(ODD_VALUES)
        if name == "destination":
            return random.choice(("/queue/a", "/queue/b"))
        return str(random.randrange(10 ** random.choice([1, 6]))) if name in ("receipt", "corr") else "same"

    def _frame(self) -> bytes:
        random = self.random
        kind = random.random()
        if kind < 0.75:
            body = b"B" * random.choice([0, 1, 5, 256]) if random.random() < 0.3 else b"hello"
            lines = []
            for name in random.choice(self.kinds):
                value = str(len(body)) if name == "content-length" else self._value(name)
                lines.append(f"{name}:{value}".encode("utf-8", "surrogateescape"))
            if random.random() < 0.02:
                lines.append(random.choice(lines))
            frame = self._written(b"SEND", lines, body)
        elif kind < 0.95:
            names = random.choice([["id"], ["sub", "id"], ["id", "sub"], ["message-id"], ["id", "receipt"]])
            pairs = [(name, "s0" if name == "sub" else self._value("corr")) for name in names]
            lines = [f"{name}:{value}".encode("utf-8", "surrogateescape") for name, value in pairs]
            frame = self._written(b"ACK", lines, b"")
        elif kind < 0.98:
            empty = random.choice([b"", b"\n", b"\n\n"])
            frame = self._written(random.choice([b"NACK", b"BEGIN"]), [b"id:1"], empty)
        else:
            frame = random.choice([b"\n", b"\r\n\n", b"\n\n\n"])
        if random.random() < self.wrong:
            at = random.randrange(len(frame))
            frame = frame[:at] + bytes([random.choice([0, 10, 13, 58, 92, 65, 255])]) + frame[at + 1 :]
        return frame + (self.gap if random.random() < 0.97 else b"\n")

    def _written(self, command: bytes, lines: list[bytes], body: bytes) -> bytes:
        return self.eol.join([command, *lines, b"", body]) + b"\0"
