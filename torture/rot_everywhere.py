"""Is there any bit of a checkpoint, or any length of it, at which rot is taken for data?

``python -m torture.rot_everywhere``: every bit and every length of a small checkpoint, of one of differences and of its
keyframe, and random places of large ones. A reader may refuse, naming the file that is damaged, or, where a bit of
padding was hit, return what was saved; nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from milepost.checkpoint.commit import commit
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import CorruptDataError, NotFoundError

__all__ = ["Trio", "every_bit", "every_length", "random_bits", "trio"]

_SMALL, _LARGE = 600, 1_500_000
Contents = dict[str, bytes]


class Trio:
    """A checkpoint that stands alone, one of differences, and the keyframe of that, in one folder.

    Args:
        folder: Where to write them.
        count: Numbers in their large tensor.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.alone = _save(folder / "checkpoint_x_0.milepost", count, step=0)
        self.keyframe = _save(folder / "checkpoint_x_1.milepost", count, step=1)
        self.differences = _save(folder / "checkpoint_x_2.milepost", count, step=2, base=self.keyframe)

    def pairs(self) -> list[tuple[Path, Path]]:
        """Which file rots, and which one is then read."""
        return [
            (self.alone, self.alone),
            (self.differences, self.differences),
            (self.keyframe, self.keyframe),
            (self.keyframe, self.differences),
        ]


def trio(folder: Path, *, large: bool) -> Trio:
    """Three files, each a few KiB, or a few MiB."""
    return Trio(folder, _LARGE if large else _SMALL)


def every_bit(files: Trio, *, each: int = 1) -> Counter[str]:
    """Flip each bit of every ``each``-th byte of each file; returns how often what happened."""
    return _flip(files, lambda size: ((place, bit) for place in range(0, size, each) for bit in range(8)))


def random_bits(files: Trio, *, seed: int, count: int) -> Counter[str]:
    """Flip ``count`` random bits of each file, one at a time."""
    chance = random.Random(seed)
    return _flip(files, lambda size: ((chance.randrange(size), chance.randrange(8)) for _ in range(count)))


def every_length(files: Trio, *, each: int = 1) -> Counter[str]:
    """Cut each file at every ``each``-th length."""
    outcomes: Counter[str] = Counter()
    for rotten, read in files.pairs():
        wanted, content = _contents(read), rotten.read_bytes()
        for length in range(0, len(content), each):
            os.truncate(rotten, length)
            outcomes[_outcome(rotten, read, wanted, f"cut to {length}")] += 1
            rotten.write_bytes(content)
    return outcomes


def _flip(files: Trio, places: Callable[[int], Iterable[tuple[int, int]]]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for rotten, read in files.pairs():
        wanted, content = _contents(read), rotten.read_bytes()
        with open(rotten, "r+b", buffering=0) as file:
            for place, bit in places(len(content)):
                os.pwrite(file.fileno(), bytes([content[place] ^ 1 << bit]), place)
                outcomes[_outcome(rotten, read, wanted, f"byte {place}, bit {bit}")] += 1
                os.pwrite(file.fileno(), content[place : place + 1], place)
    return outcomes


def _outcome(rotten: Path, read: Path, wanted: Contents, what: str) -> str:
    try:
        found = _contents(read)
    except (CorruptDataError, NotFoundError) as error:
        return "refused" if rotten.name in str(error) else f"refused without its name: {rotten.name}, {what}: {error}"
    except Exception as error:
        return f"wrong error: {rotten.name}, {what}: {type(error).__name__}: {error}"
    return "harmless" if found == wanted else f"taken for data: {rotten.name}, {what}"


def _contents(path: Path) -> Contents:
    with open_checkpoint(path) as file:
        return {name: value.tobytes() for name, value in file.read_all().items()} | {"": repr(file.info).encode()}


def _save(path: Path, count: int, *, step: int, base: Path | None = None) -> Path:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal(count, np.float32)
    arrays = {
        "weight": weight + np.float32(step) * generator.standard_normal(count, np.float32) * np.float32(1e-7),
        "frozen": np.arange(count // 4, dtype=np.int32),
        "step": np.array([step], np.int64),
    }
    entries, memory = [], b""
    for storage, (name, array) in enumerate(arrays.items()):
        memory = memory.ljust(-(-len(memory) // 4096) * 4096, b"\0")
        entries.append(
            TensorEntry(
                name=name,
                dtype=array.dtype.name,
                shape=array.shape,
                offset=len(memory),
                nbytes=array.nbytes,
                storage=storage,
            )
        )
        memory += array.tobytes()
    tree = json.dumps({"dict": []})
    job = SaveJob(
        path=str(path), experiment_id="rot", step=step, tree=tree, tensors=entries, arena_bytes=len(memory), delta=True
    )
    commit(job, memoryview(memory), threads=1, base=base, keep=1000)
    return path


def main() -> int:
    """Do all of it and print what happened; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m torture.rot_everywhere", description=__doc__)
    parser.add_argument("--each", type=int, default=1, help="every how many bytes of the small files")
    parser.add_argument("--flips", type=int, default=1000, help="random bits of each large file")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        few, many = trio(Path(small), large=False), trio(Path(large), large=True)
        for name, outcomes in (
            ("every bit", every_bit(few, each=given.each)),
            ("every length", every_length(few, each=given.each)),
            ("random bits of large files", random_bits(many, seed=given.seed, count=given.flips)),
        ):
            print(name, dict(outcomes), flush=True)
            wrong += sum(outcomes.values()) - outcomes["refused"] - outcomes["harmless"]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
