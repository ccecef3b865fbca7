"""How small and how fast is the checkpoint format against a plain write of the same bytes?

    python bench/checkpoint_format.py [--series FOLDER] [--base STEP --step STEP] [--folder FOLDER] [--rounds 5]

Writes one state in turn as a plain file, raw, compressed, and as differences to an earlier state, reads each back, and
encodes once more without a disk. A series is a folder of ``<step>.pt`` (bench/make_series.py makes one); without it a
synthetic state of 200 MB is taken. Each line is the median of the rounds; the first round, which learns the plans, is
shown apart. Compare within one run only: disks and neighbours drift.

Differences are written whether or not they repay their keyframe, which a real save would ask first.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np

from measuring import machine, scratch, table
from milepost.checkpoint.commit import commit, verify
from milepost.checkpoint.container import BaseChoice, write_container
from milepost.checkpoint.habits import Habits
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.parallel import available_cores
from milepost.checkpoint.reading import open_checkpoint
from milepost.io.direct import NewFile

_ELEMENTS = 600_064
_COUNT = 84
_PIECE = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A snapshot as the trainer stages it."""

    entries: list[TensorEntry]
    arena: memoryview
    step: int

    def job(self, path: Path, *, compression: bool = True) -> SaveJob:
        """A save of it."""
        return SaveJob(
            path=str(path),
            experiment_id="bench",
            step=self.step,
            timestamp=float(self.step),
            tree="null",
            tensors=self.entries,
            arena_bytes=len(self.arena),
            compression=compression,
            delta=True,
        )


class Nowhere:
    """A file that takes no time: what is left is encoding."""

    def preallocate(self, size: int) -> None:
        """Nothing."""

    def write(self, data: memoryview, offset: int) -> None:
        """Nothing."""


@dataclass(slots=True)
class Bench:
    """One state, the one before it, and what was measured of them."""

    state: State
    base: Path
    folder: Path
    times: dict[str, list[float]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    habits: dict[str, Habits] = field(default_factory=dict)

    def round(self, number: int) -> None:
        """Measure everything once."""
        self._measure("plain O_DIRECT write", lambda: _plain_write(self.folder / f"plain_{number}", self.state.arena))
        for way in ("raw", "self", "delta"):
            path = self.folder / f"checkpoint_{way}_{number}.milepost"
            self._measure(f"{way}: encoded only", lambda way=way: self._encode(way))
            self._measure(f"{way}: durable", lambda way=way, path=path: self._write(way, path))
            self._measure(f"{way}: verified", lambda path=path: verify(path))
            self._measure(f"{way}: restored", lambda path=path: self._restore(path))
            path.unlink()
        (self.folder / f"plain_{number}").unlink()

    def _measure(self, name: str, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self.times.setdefault(name, []).append(time.perf_counter() - start)

    def _write(self, way: str, path: Path) -> None:
        job = self.state.job(path, compression=way != "raw")
        habits = self.habits.setdefault(way, Habits())
        self.sizes[way] = commit(job, self.state.arena, habits=habits, base=self.base if way == "delta" else None).size

    def _encode(self, way: str) -> None:
        job = self.state.job(self.folder / "nowhere.milepost", compression=way != "raw")
        habits = self.habits.setdefault(way, Habits())
        with open_checkpoint(self.base) as file:
            base = BaseChoice(file=file, step=file.info.step, keep=1) if way == "delta" else None
            new = cast("NewFile", Nowhere())
            write_container(new, job, self.state.arena, threads=available_cores(), habits=habits, base=base)

    def _restore(self, path: Path) -> None:
        memory = np.ones(len(self.state.arena), np.uint8)
        with open_checkpoint(path) as file:
            file.read_many_into(
                {e.name: memory[e.offset : e.offset + e.nbytes] for e in self.state.entries if e.nbytes}
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, help="folder of <step>.pt")
    parser.add_argument("--base", type=int, default=75)
    parser.add_argument("--step", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where to write; a new temporary folder by default")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    earlier, state = (_read(chosen.series, step) for step in (chosen.base, chosen.step))
    with scratch(chosen.folder) as folder, mock.patch("milepost.checkpoint.survey.pays", return_value=True):
        base = folder / "checkpoint_base.milepost"
        commit(earlier.job(base), earlier.arena)
        bench = Bench(state=state, base=base, folder=folder)
        for number in range(1 + chosen.rounds):
            bench.round(number)
    _show(bench, chosen.series)


def _show(bench: Bench, series: Path | None) -> None:
    nbytes = len(bench.state.arena)
    medians = {name: statistics.median(taken[1:]) for name, taken in bench.times.items()}
    plain = medians["plain O_DIRECT write"]
    rows = [
        [name, round(bench.times[name][0] * 1e3), round(m * 1e3), round(nbytes / m / 1e9, 2), round(m / plain, 2)]
        for name, m in medians.items()
    ]
    print(f"{series or 'synthetic'}: {nbytes / 1e6:.0f} MB; {machine()}\n", file=sys.stdout)
    print(table(["", "first ms", "median ms", "GB/s of state", "x plain write"], rows))
    for way, size in bench.sizes.items():
        limit = max(medians[f"{way}: encoded only"], plain * size / nbytes)
        durable = medians[f"{way}: durable"]
        print(f"{way}: {size / nbytes:.4f} of the bytes; durable {durable / limit:.2f} x max(encoding, disk)")


def _plain_write(path: Path, data: memoryview) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL | getattr(os, "O_DIRECT", 0), 0o600)
    for offset in range(0, len(data), _PIECE):
        os.pwrite(fd, data[offset : offset + _PIECE], offset)
    os.fsync(fd)
    os.close(fd)


def _read(series: Path | None, step: int) -> State:
    arrays = dict(_synthetic(step) if series is None else _saved(series / f"{step}.pt"))
    entries: list[TensorEntry] = []
    end = 0
    for storage, (name, (dtype, shape, content)) in enumerate(arrays.items()):
        start = -(-end // 4096) * 4096 if len(content) >= 64 << 10 else -(-end // 64) * 64
        end = start + len(content)
        entries.append(
            TensorEntry(name=name, dtype=dtype, shape=shape, offset=start, nbytes=len(content), storage=storage)
        )
    arena = memoryview(mmap.mmap(-1, -(-end // 4096) * 4096))
    memory = np.frombuffer(arena, np.uint8)
    for entry, (_, _, content) in zip(entries, arrays.values(), strict=True):
        memory[entry.offset : entry.offset + entry.nbytes] = content
    return State(entries=entries, arena=arena, step=step)


_Content = tuple[str, tuple[int, ...], np.ndarray[Any, np.dtype[np.uint8]]]


def _synthetic(step: int) -> Iterator[tuple[str, _Content]]:
    """Weights, first and second moments; from one step to the next weights move little and second moments decay."""
    fixed, moving = np.random.default_rng(0), np.random.default_rng(step)
    for index in range(_COUNT):
        values = fixed.standard_normal(_ELEMENTS, np.float32)
        noise = moving.standard_normal(_ELEMENTS, np.float32)
        kind = index % 3
        if kind == 0:
            values = values * np.float32(0.02) + noise * np.float32(1e-5 * step / 100)
        elif kind == 1:
            values = noise * np.float32(1e-4)
        else:
            values = np.square(values * np.float32(1e-4)) * np.float32(0.999**step) + np.square(noise) * np.float32(
                1e-10
            )
        yield f"tensor {index}", ("float32", (_ELEMENTS,), values.view(np.uint8))


def _saved(path: Path) -> Iterator[tuple[str, _Content]]:
    """The tensors of a file of torch.save, each storage once."""
    import torch

    seen: set[int] = set()
    for name, tensor in _tensors(torch.load(path, weights_only=True), ""):
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield name, (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), content)


def _tensors(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    if hasattr(node, "data_ptr"):
        yield place, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _tensors(value, f"{place}/{key}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _tensors(value, f"{place}/{index}")


if __name__ == "__main__":
    main()
