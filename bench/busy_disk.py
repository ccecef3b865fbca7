"""How long is the worst call while another process saturates the disk?

    python bench/busy_disk.py --folder /path/on/the/disk

Calls at 1 kHz: first on a quiet disk, then beside a process that writes and syncs as fast as it can on the same file
system (at most 1 GiB of scratch). Beside milepost: one ``write`` per record, and a ``write`` with ``fdatasync`` each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from measuring import machine, percentile, scratch, table

_FILL = """
import os, sys
path, size = sys.argv[1], 64 << 20
block = os.urandom(1 << 20)
fd = os.open(path, os.O_RDWR | os.O_CREAT)
while True:
    for place in range(0, size, len(block)):
        os.pwrite(fd, block, place)
    os.fsync(fd)
    size = 64 << 20 if size >= 768 << 20 else size * 2
"""


@contextmanager
def saturated_disk(folder: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", _FILL, str(folder / "fill")]) as process:
        time.sleep(3.0)  # past what the page cache takes at once
        try:
            yield
        finally:
            process.kill()


def milepost(folder: Path) -> tuple[Callable[[int], object], Callable[[], object]]:
    import milepost as package

    run = package.start("busy", root=str(folder / "store"), tensorboard_dir=None, capture_code=False)
    return lambda step: run.log({"loss": 1.0, "accuracy": 0.5, "learning_rate": 2e-5, "grad_norm": 0.5}, step), run.end


def write(folder: Path, *, sync: bool) -> tuple[Callable[[int], object], Callable[[], object]]:
    fd = os.open(folder / f"lines-{sync}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def log(step: int) -> None:
        record = {"step": step, "loss": 1.0, "accuracy": 0.5, "learning_rate": 2e-5, "grad_norm": 0.5}
        os.write(fd, json.dumps(record).encode() + b"\n")
        if sync:
            os.fdatasync(fd)

    return log, lambda: os.close(fd)


CANDIDATES: dict[str, Callable[[Path], tuple[Callable[[int], object], Callable[[], object]]]] = {
    "milepost": milepost,
    "one write per record": lambda folder: write(folder, sync=False),
    "write and fdatasync": lambda folder: write(folder, sync=True),
}


def measure(name: str, disk: str, folder: Path, seconds: float) -> list[object]:
    log, finish = CANDIDATES[name](folder)
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        before = time.perf_counter()
        log(len(took))
        took.append((time.perf_counter() - before) * 1e6)
        time.sleep(0.001)
    finish()
    return [name, disk, len(took), *(percentile(took, share) for share in (0.5, 0.99, 0.999)), max(took)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="on the file system to be measured; default: the temporary folder")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    with scratch(given.folder) as folder:
        rows = [measure(name, "quiet", folder, given.seconds) for name in CANDIDATES]
        with saturated_disk(folder):
            rows += [measure(name, "saturated", folder, given.seconds) for name in CANDIDATES]
    print(machine(), "\n")
    print(table(["logger", "disk", "calls", "p50 us", "p99 us", "p99.9 us", "max us"], rows))


if __name__ == "__main__":
    main()
