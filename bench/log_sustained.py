"""How many points per second does milepost take for long, what do both processes hold, and is one point lost?

    python bench/log_sustained.py --points 10000000 --rate 500000

Exits with 1 if anything is lost. ``--rate 0`` logs as fast as it goes: about two million points per second, which a
disk, or a companion without a core of its own, does not follow for long. What the log's 64 MiB of memory cannot hold is
lost then, and counted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from measuring import machine, resident_megabytes, scratch, table

_REPORTS = 20


def companion_of_this_process() -> int:
    """Process id of the companion: our only child."""
    children = [p.read_text().split() for p in Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    return next((int(pid) for pids in children for pid in pids), 0)


def log_points(points: int, rate: int, folder: Path) -> tuple[str, list[list[object]], float]:
    """Log four points per call; the run's id, a row per report, and the seconds of the whole."""
    import milepost

    run = milepost.start("sustained", root=str(folder), tensorboard_dir=None, capture_code=False, exit_timeout=600.0)
    _wait_for_the_companion(folder)
    rows: list[list[object]] = []
    calls = points // 4
    each = max(1, calls // _REPORTS)
    begun = last = time.perf_counter()
    for step in range(calls):
        run.log({"loss": 1.0 / (step + 1), "accuracy": step * 1e-7, "learning_rate": 2e-5, "grad_norm": 0.5}, step)
        if rate and step % 1000 == 0:
            time.sleep(max(0.0, begun + 4 * step / rate - time.perf_counter()))
        if (step + 1) % each == 0:
            now = time.perf_counter()
            rss = [resident_megabytes(pid) for pid in (os.getpid(), companion_of_this_process())]
            rows.append([4 * (step + 1), 4 * each / (now - last), *rss])
            last = now
    seconds = time.perf_counter() - begun
    run.end()
    return run.id, rows, seconds


def _wait_for_the_companion(folder: Path) -> None:
    """Until it drains: while it starts, the log's memory takes what comes, and that is not what is measured here."""
    while not any((folder / "metrics").glob("*/*.mlog")):
        time.sleep(0.01)


def count_lost(folder: Path, run_id: str, calls: int) -> int:
    """How many of the steps are not in the log, by reading all of it."""
    from milepost.core.events import Metrics
    from milepost.runs.scan import read_log_files, scan

    present = bytearray(calls)
    for log in read_log_files(folder / "metrics" / run_id):
        for record in scan(log):
            if isinstance(record.event, Metrics) and len(record.event.values) == 4:
                present[record.event.step or 0] = 1
    return calls - present.count(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--rate", type=int, default=500_000, help="points per second; 0: as fast as it goes")
    given = parser.parse_args()
    with scratch() as folder:
        run_id, rows, seconds = log_points(given.points, given.rate, folder)
        size = sum(path.stat().st_size for path in (folder / "metrics").rglob("*.mlog"))
        lost = count_lost(folder, run_id, given.points // 4)
    print(machine(), "\n")
    print(table(["points", "points/s", "training process MB", "companion MB"], rows))
    print(
        f"\n{given.points:,} points in {seconds:.1f} s: {given.points / seconds:,.0f} points/s, "
        f"{size / given.points:.1f} bytes per point in the live log, {lost} records lost"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
