"""How fast is the checkpoint format against a plain write of the same bytes?

Writes a synthetic state of 200 MB (float32 weights, first and second moments, normally distributed) in turn as a plain
file and as raw and compressed checkpoints, and reads them back. Compare within one run only: disks drift.

Usage: python bench/checkpoint_format.py [FOLDER]
"""

from __future__ import annotations

import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from milepost.checkpoint.commit import commit, verify
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.reading import open_checkpoint

ROUNDS = 5
ELEMENTS = 600_064  # 2.4 MB, a multiple of the page
COUNT = 84


def main() -> None:
    nbytes = COUNT * ELEMENTS * 4
    arena = memoryview(mmap.mmap(-1, nbytes))
    values = np.frombuffer(arena, np.float32)
    values[:] = np.random.default_rng(0).standard_normal(len(values), np.float32)
    third = len(values) // 3
    values[:third] *= 0.02
    values[third:] *= 1e-4
    np.square(values[2 * third :], out=values[2 * third :])
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as folder:
        times: dict[str, list[float]] = {}
        sizes: dict[str, int] = {}
        for number in range(ROUNDS):
            for name, work in _works(Path(folder) / f"checkpoint_{number}", arena, sizes).items():
                start = time.perf_counter()
                work()
                times.setdefault(name, []).append(time.perf_counter() - start)
    plain = statistics.median(times["plain write"])
    print(f"{nbytes / 1e6:.0f} MB of float32, {os.cpu_count()} cores, median of {ROUNDS}")
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(f"{name:24} {middle * 1e3:7.0f} ms {nbytes / middle / 1e9:6.2f} GB/s {middle / plain:5.2f} x plain write")
    for name, size in sizes.items():
        print(f"{name:24} {size / nbytes:.4f} of the state's bytes")


def _works(path: Path, arena: memoryview, sizes: dict[str, int]) -> dict[str, Callable[[], None]]:
    entries = [
        TensorEntry(
            name=f"tensor {i}",
            dtype="float32",
            shape=(ELEMENTS,),
            offset=i * ELEMENTS * 4,
            nbytes=ELEMENTS * 4,
            storage=i,
        )
        for i in range(COUNT)
    ]
    target = np.ones(len(arena), np.uint8)
    buffers = {entry.name: target[entry.offset : entry.offset + entry.nbytes] for entry in entries}

    def write(compression: bool) -> None:
        name = f"{path}_{compression}.milepost"
        job = SaveJob(
            path=name,
            experiment_id="bench",
            step=0,
            tree="null",
            tensors=entries,
            arena_bytes=len(arena),
            compression=compression,
        )
        sizes["compressed" if compression else "raw"] = commit(job, arena).size

    def restore(compression: bool) -> None:
        with open_checkpoint(f"{path}_{compression}.milepost") as file:
            file.read_many_into(buffers)

    return {
        "plain write": lambda: _plain_write(f"{path}.plain", arena),
        "raw: durable": lambda: write(compression=False),
        "raw: verified from disk": lambda: verify(f"{path}_False.milepost"),
        "raw: restored": lambda: restore(compression=False),
        "compressed: durable": lambda: write(compression=True),
        "compressed: verified": lambda: verify(f"{path}_True.milepost"),
        "compressed: restored": lambda: restore(compression=True),
    }


def _plain_write(path: str, data: memoryview) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL | getattr(os, "O_DIRECT", 0), 0o600)
    for offset in range(0, len(data), 8 << 20):
        os.pwrite(fd, data[offset : offset + (8 << 20)], offset)
    os.fsync(fd)
    os.close(fd)


if __name__ == "__main__":
    main()
