"""What the SENDs of one connection have in common: blocks that repeat, shapes made of them. All bounded."""

from __future__ import annotations

from typing import Final

from broker.stomp.escapes import escape
from broker.stomp.frames import Block, Version
from broker.stomp.half import Half, Item
from broker.stomp.headers import Lines
from broker.stomp.limits import WireLimits
from broker.stomp.shape import Hole, Shape

BLOCKS: Final = 256
BLOCK_BYTES: Final = 512
FAMILIES: Final = 32
SHAPES: Final = 16
SHAPE_BYTES: Final = 2048  # longer headers always go the general way: a shape costs some times their size
MISSES: Final = 64  # in a row; then only each 16th frame is looked up and remembered
BETWEEN_LOOKS: Final = 16
CREDIT: Final = 64
_NEVER_SHARED: Final = frozenset(("receipt", "content-length"))


class _Family:
    """SENDs with the same header names in the same order and the same steering values.

    values:    those of the first one.
    varying:   places of the headers that were seen with different values, ever; they only grow.
    compared:  places of the others, `receipt` excepted.
    stay:      places of the lines that make the block.
    own:       places of those that are each message's own, with `name:` as STOMP 1.2 escapes it.
    shapeless: no shape can be made of them.
    """

    __slots__ = ("compared", "own", "shape", "shapeless", "stay", "values", "varying")

    def __init__(self, names: tuple[str, ...], values: tuple[str, ...]) -> None:
        self.values = values
        self.varying: set[int] = set()
        self.shape: Shape | None = None
        self.shapeless = False
        self.compared: tuple[int, ...] = ()
        self.stay: tuple[int, ...] = ()
        self.own: tuple[tuple[int, str], ...] = ()
        self.part(names)

    def part(self, names: tuple[str, ...]) -> None:
        """Work out the places anew, after `varying` has grown."""
        varying = self.varying
        places = range(len(names))
        self.compared = tuple(at for at in places if at not in varying and names[at] != "receipt")
        self.stay = tuple(at for at in self.compared if names[at] != "content-length")
        self.own = tuple(
            (at, escape(names[at], Version.V1_2) + ":")
            for at in places
            if at in varying and names[at] != "content-length"
        )

    def grows(self, values: tuple[str, ...]) -> set[int]:
        """Places of headers that differ for the first time."""
        first = self.values
        return {at for at in self.compared if values[at] != first[at]}


class Memory:
    """Learns from each SEND that was parsed the general way.

    last: the shape of the SEND before, where it had one.
    half: the frame that `run` found at the end of the buffer with its body cut, for the parser to go on with.
    """

    __slots__ = (
        "_blocks", "_credit", "_dry", "_families", "_limits", "_misses", "_shapes", "_steering",
        "_version", "half", "last",
    )  # fmt: skip

    def __init__(self, version: Version, limits: WireLimits, steering: frozenset[str]) -> None:
        self.half: Half | None = None
        self._version = version
        self._limits = limits
        self._steering = steering
        self._blocks: dict[bytes, Block] = {}
        self._families: dict[tuple[object, ...], _Family] = {}
        self._shapes: list[Shape] = []
        self.last: Shape | None = None
        self._misses = 0
        # Up by one where a shape took frames, down where the general path had to. Below 0 the shapes are not
        # worth their tries (say, SENDs to 100 queues at random): only now and then one is made or tried.
        self._credit = CREDIT
        self._dry = 0

    def run(self, buf: bytes, pos: int, gap: bytes, out: list[Item]) -> int:
        """Take SENDs from `pos` on that look like earlier ones.

        Returns the place behind the last one taken, `pos` where none looks so.
        """
        if self._credit < 0:
            self._dry += 1
            if self._dry % BETWEEN_LOOKS:
                return pos
        last = self.last
        guess = last.after if last is not None else None
        if guess is not None and buf.startswith(guess.lead, pos):
            end = guess.run(buf, pos, gap, out)
            if end > pos:
                self._credit += self._credit < CREDIT
                self.last = guess
                self.half, guess.half = guess.half, None
                return end
        for shape in self._shapes:
            if shape is not guess and buf.startswith(shape.lead, pos):
                end = shape.run(buf, pos, gap, out)
                if end > pos:
                    self._credit += self._credit < CREDIT
                    if last is not None:
                        last.after = shape
                    self.last = shape
                    self.half, shape.half = shape.half, None
                    return end
        return pos

    def learn(self, raw: bytes, lines: Lines, repeats: bool, size: int) -> tuple[Block, bytes | None]:
        """The block of a SEND and its own lines, None where it has none.

        `raw`: the header lines without the last line end; `repeats`: some name is there twice; `size`: the
        content-length, -1 without.
        """
        names, values = lines
        self._credit -= self._credit >= 0
        if len(raw) > SHAPE_BYTES or (self._misses >= MISSES and self._misses % BETWEEN_LOOKS):
            self._misses += 1
            return _block(lines), None
        raws = self._split(raw) if names else []
        if repeats:
            return self._remembered(raws, lines, _stay(names)), None
        steering = self._steering
        same = [values[at] for at, name in enumerate(names) if name in steering and name not in _NEVER_SHARED]
        key = (names, *same)
        family = self._families.get(key)
        if family is None:
            if len(self._families) >= FAMILIES:
                self._families.clear()
                self._shapes.clear()
                self.last = None
            self._families[key] = family = _Family(names, values)
            return self._remembered(raws, lines, family.stay), None
        grown = family.grows(values)
        if grown:
            family.varying |= grown
            family.part(names)
        block = self._remembered(raws, lines, family.stay)
        now = self._credit >= 0 or self._dry % BETWEEN_LOOKS == 0
        if grown or (now and not family.shapeless and family.shape not in self._shapes):
            self._shape(family, block, raw, raws, names, size)
        if not family.own:
            return block, None
        own = [name + escape(values[at], Version.V1_2) for at, name in family.own]
        return block, ("\n".join(own) + "\n").encode()

    def _remembered(self, raws: list[bytes], lines: Lines, stay: tuple[int, ...]) -> Block:
        """The block of the lines that stay, the same object for the same bytes where it is remembered."""
        key = b"\n".join([raws[at] for at in stay])
        block = self._blocks.get(key)
        if block is not None:
            self._misses = 0
            return block
        self._misses += 1
        names, values = lines
        block = Block([(names[at], values[at]) for at in stay])
        if len(key) <= BLOCK_BYTES:
            if len(self._blocks) >= BLOCKS:
                self._blocks.clear()
            self._blocks[key] = block
        return block

    def _split(self, raw: bytes) -> list[bytes]:
        """The header lines without their line ends; before 1.2 a CR belongs to the line."""
        if self._version is Version.V1_2 and b"\r" in raw:
            raw = raw.replace(b"\r\n", b"\n").removesuffix(b"\r")
        return raw.split(b"\n")

    def _shape(
        self, family: _Family, block: Block, raw: bytes, raws: list[bytes], names: tuple[str, ...], size: int
    ) -> None:
        """Make the family's shape anew. There is none for mixed line ends, a CR that is data, or no room."""
        if family.shape in self._shapes:
            self._shapes.remove(family.shape)
        family.shape = None
        family.shapeless = True
        self.last = None
        eol = b"\n"
        if b"\r" in raw:
            # 1.2 has no CR but at the end of a line, so this says that every line ends with CR LF.
            if self._version is not Version.V1_2 or raw.count(b"\r") != len(raws):
                return
            eol = b"\r\n"
        holes: list[Hole] = []
        for at, name in enumerate(names):
            if name == "receipt":
                holes.append((at, name, "receipt"))
            elif at in family.varying:
                holes.append((at, name, "size" if name == "content-length" else "own"))
        if any(kind == "size" for _, _, kind in holes):
            size = -1
        shape = Shape(self._version, self._limits, block, raws, holes, eol, size)
        if shape.has_room:
            family.shape = shape
            family.shapeless = False
            self._shapes.insert(0, shape)
            del self._shapes[SHAPES:]


def _stay(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(at for at, name in enumerate(names) if name not in _NEVER_SHARED)


def _block(lines: Lines) -> Block:
    return Block([(name, value) for name, value in zip(*lines, strict=True) if name not in _NEVER_SHARED])
