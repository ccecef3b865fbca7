"""Is a flipped bit ever taken for data?

One bit at a time, in the files of a sound store: every place of headers and trailers, and random places elsewhere. A
reader may refuse, or skip and say so; it may never return another value than was written.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import CorruptDataError
from milepost.core.events import Metrics
from milepost.runs.scan import Damage, read_log_files, scan
from torture import planted
from torture.content import metrics_at, same_metrics

__all__ = ["Rot", "rot"]

_ENDS = 128
_LOG_HEADER = 64
_MOST_RECORDS_HIT = 2


@dataclass(slots=True)
class Rot:
    """What became of the flips.

    Attributes:
        flips: How many bits were flipped, one at a time.
        outcomes: ``refused``, ``skipped``, or ``harmless`` (what was read is what was written).
        problems: A wrong value was returned, or too much was lost.
    """

    flips: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def rot(folder: Path, seed: int, flips: int) -> Rot:
    """Flip ``flips`` random bits in each kind of file of the store, and every bit place of the ends of checkpoints."""
    planted.plant_in_reader()
    result = Rot()
    outcomes: Counter[str] = Counter()
    chance = random.Random(seed)
    for path in sorted((folder / "checkpoints").glob("*.milepost"))[:1]:
        wanted = _content(path)
        for place, bit in _places(path, chance, flips, ends=_ENDS):
            outcomes[_flip_in_checkpoint(path, place, bit, wanted, result)] += 1
    for path in sorted((folder / "metrics").glob("*/*.mlog")):
        before = set(_records(path.parent)[0])
        for place, bit in _places(path, chance, flips, ends=_LOG_HEADER):
            outcomes[_flip_in_log(path, place, bit, before, seed, result)] += 1
    result.flips = sum(outcomes.values())
    result.outcomes = dict(outcomes)
    return result


def _places(path: Path, chance: random.Random, count: int, *, ends: int) -> Iterator[tuple[int, int]]:
    size = path.stat().st_size
    for place in [*range(min(ends, size)), *range(max(0, size - ends), size)]:
        yield place, chance.randrange(8)
    for _ in range(count):
        yield chance.randrange(size), chance.randrange(8)


def _flip(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        (old,) = file.read(1)
        file.seek(place)
        file.write(bytes([old ^ (1 << bit)]))


def _content(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as file:
        return {name: value.tobytes() for name, value in file.read_all().items()} | {"": repr(file.info).encode()}


def _flip_in_checkpoint(path: Path, place: int, bit: int, wanted: dict[str, bytes], result: Rot) -> str:
    _flip(path, place, bit)
    try:
        found = _content(path)
    except CorruptDataError:
        return "refused"
    except Exception as error:
        result.problems.append(f"{path.name}, byte {place}, bit {bit}: {type(error).__name__}: {error}")
        return "wrong error"
    finally:
        _flip(path, place, bit)
    if found != wanted:
        result.problems.append(f"{path.name}, byte {place}, bit {bit}: loaded, and not what was saved")
        return "taken for data"
    return "harmless"


def _records(folder: Path) -> tuple[dict[tuple[int, int], dict[str, float]], list[Damage]]:
    """Values of all records of metrics by attempt and step, and what was reported as damaged."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    damage: list[Damage] = []
    for log in read_log_files(folder):
        for record in scan(log, damage=damage):
            if isinstance(record.event, Metrics):
                found[int(record.event.epoch or 0), int(record.event.step or 0)] = dict(record.event.values)
    return found, damage


def _flip_in_log(path: Path, place: int, bit: int, before: set[tuple[int, int]], seed: int, result: Rot) -> str:
    label = f"{path.name}, byte {place}, bit {bit}"
    _flip(path, place, bit)
    try:
        found, damage = _records(path.parent)
    except Exception as error:
        result.problems.append(f"{label}: {type(error).__name__}: {error}")
        return "wrong error"
    finally:
        _flip(path, place, bit)
    for record, values in found.items():
        if not same_metrics(values, metrics_at(seed, *record)):
            result.problems.append(f"{label}: {record} has values that were never logged: {values}")
            return "taken for data"
    lost = len(before - found.keys())
    if lost > _MOST_RECORDS_HIT or (lost and not damage):
        result.problems.append(f"{label}: {lost} records are lost, {len(damage)} damages are reported")
    return "skipped" if lost or damage else "harmless"
