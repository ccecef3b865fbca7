"""How long until milepost is imported, a run is started, and the command line answers?

    python bench/start_time.py

Each in a process of its own, several times; the median, next to a Python that does nothing.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import machine, scratch, table

_START = """
import time
begun = time.perf_counter()
import milepost
imported = time.perf_counter()
run = milepost.start("start", tensorboard_dir=None)
print(imported - begun, time.perf_counter() - imported)
begun = time.perf_counter()
run.end()
print(time.perf_counter() - begun)
"""

PROGRAMS = {
    "python, nothing": "pass",
    "import milepost": "import milepost",
    "command line: --help": "import sys; sys.argv = ['milepost', '--help']\nfrom milepost.cli.app import main\nmain()",
    "import, start_experiment, end": _START,
}


def median_seconds(program: str, folder: Path, repeats: int) -> float:
    took = []
    for _ in range(repeats):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def inside(folder: Path, repeats: int) -> list[float]:
    """Median seconds of the import, of the start, and of the end, inside of one process each."""
    rows = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", _START], cwd=folder, capture_output=True, text=True, check=True)
        rows.append([float(word) for word in done.stdout.split()[-3:]])
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with scratch() as folder:
        wholes = {name: median_seconds(program, folder, given.repeats) for name, program in PROGRAMS.items()}
        parts = inside(folder, given.repeats)
    bare = wholes["python, nothing"]
    rows: list[list[object]] = [[name, whole * 1000, (whole - bare) * 1000] for name, whole in wholes.items()]
    names = ("inside: import milepost", "inside: milepost.start", "inside: run.end")
    rows += [[name, float("nan"), seconds * 1000] for name, seconds in zip(names, parts, strict=True)]
    print(machine(), "\n")
    print(table(["", "process ms", "without Python's own ms"], rows))


if __name__ == "__main__":
    main()
