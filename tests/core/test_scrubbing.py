"""The scrub reads the whole log again and again, finds rot before it is needed, and gets in nobody's way."""

from __future__ import annotations

import pytest

from broker.core import Keep
from broker.core.scrubbing import Step
from broker.journal import segment_name
from tests.core.audit import audit
from tests.core.world import DATA_DIR, World, drain

SIZE = 32 * 1024


def full(rate: int = 1 << 20) -> World:
    """A log of several segments, most of which are wanted."""
    world = World(storage={"segment_size": SIZE, "scrub_rate": rate})
    producer = world.connect()
    for n in range(60):
        producer.publish("/queue/a", f"{n} {'x' * 2000}")
    return world


def rot(world: World, number: int, offset: int) -> str:
    name = segment_name(number)
    path = f"{DATA_DIR}/log/{name}"
    data = bytearray(world.disk.contents(path))
    data[offset] ^= 4
    world.disk.put(path, bytes(data))
    return name


def told(world: World) -> list[str]:
    return [text for level, name, text in world.events.seen if (level, name) == ("error", "scrub")]


@pytest.mark.parametrize("offset", [8, 512 + 20, 20_000])
def test_rot_anywhere_in_a_full_segment_is_found_and_told_once(offset: int) -> None:
    world = full()
    name = rot(world, world.journal.segments[1].number, offset)
    world.advance(60)
    assert len(told(world)) == 1
    assert name in told(world)[0]
    assert world.broker.counters.damaged == 1
    assert world.failed is None
    audit(world)


def test_a_sound_log_is_read_again_and_again_and_nothing_is_told() -> None:
    world = full()
    sealed = sum(segment.end for segment in world.journal.segments if segment is not world.journal.segment)
    world.advance(60)
    assert told(world) == []
    assert world.broker.counters.scrubbed > 2 * sealed


def test_no_more_is_read_in_a_second_than_the_rate_allows() -> None:
    world = full(rate=4000)
    world.advance(10)
    assert 0 < world.broker.counters.scrubbed <= 11 * (4000 + 2 * 2200)  # a step ends with a whole record


def test_with_a_rate_of_zero_nothing_is_read() -> None:
    world = full(rate=0)
    rot(world, world.journal.segments[0].number, 2000)
    world.advance(100)
    assert world.broker.counters.scrubbed == 0
    assert told(world) == []


def test_a_segment_that_is_being_read_is_not_removed_and_goes_afterwards() -> None:
    world = full()
    world.auto = False
    for _ in range(50):
        world.clock.now += 1
        world.broker.tick()
        world.turn()
        if step := next((job for job in world.jobs if isinstance(job, Keep) and isinstance(job.task, Step)), None):
            break
        while world.complete():
            pass
    else:
        raise AssertionError("nothing is scrubbed")
    world.jobs.remove(step)
    world.auto = True
    drain(world, "/queue/a")
    world.advance(2)
    first = world.journal.segments[0]
    assert first is step.task.segment and first.readers == 1 and not first.live  # type: ignore[attr-defined]
    world.jobs.append(step)
    world.run()
    assert world.journal.segments[0] is not first
    assert told(world) == []
    audit(world)
