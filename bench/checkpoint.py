"""What does a checkpoint cost a training, in time, bytes and memory, and how fast does it come back?

    python bench/make_series.py bert fp32 /tmp/series/bert-fp32
    python bench/checkpoint.py --series /tmp/series/bert-fp32 [--series ...] [--peers PYTHON]
    python bench/checkpoint.py --training [--peers PYTHON]
    python bench/checkpoint.py --large FOLDER

``--series`` saves the checkpoints of a recorded training one after another and restores the last one; ``--training``
trains a transformer of 22.8 million parameters and asks what a save adds to its wall time; ``--large`` saves and loads
a state of a third of a machine's memory. Candidates of other packages run with the interpreter given. All candidates
are alive at once and take turns, each in a process of its own, so that a drifting machine treats them alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from checkpoint_savers import CANDIDATES, NEEDS_PEERS
from measuring import machine, scratch, table

_WARM_UP = 3  # saves before anything counts: memory is made, and overlap is on probation
_NAN = float("nan")
_SERIES_COLUMNS = (
    "stall ms (median)", "stall ms (max)", "durable ms", "bytes 1st", "2nd", "3rd", "4th",
    "cold ms", "cold GB/s", "warm ms", "warm GB/s",
)  # fmt: skip
_TRAINING_COLUMNS = (
    "stall ms (median)", "stall ms (max)", "added per save ms", "beside the stall ms", "trainer MB", "writer MB",
)  # fmt: skip


class Process:
    """One candidate's process; a candidate that fails once answers NaN from then on."""

    def __init__(self, candidate: str, peers: str | None) -> None:
        self.candidate = candidate
        self.error = ""
        python = peers if peers is not None and candidate in NEEDS_PEERS else sys.executable
        source = Path(__file__).resolve().parents[1] / "src"
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("checkpoint_subject.py")), candidate],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(source),
        )

    @property
    def pid(self) -> int:
        """Whom to watch."""
        return self._process.pid

    def ask(self, question: str, **arguments: Any) -> dict[str, Any]:
        """Its answer; empty once it has failed."""
        if self.error:
            return {}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([question, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process died"}
        self.error = answer.pop("error", "")
        if self.error:
            print(f"{self.candidate}: {question} failed: {self.error}", file=sys.stderr)
            return {}
        return answer

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def _environment(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source), "MILEPOST_MODE": "enabled"}


def _short(error: str) -> str:
    return error.splitlines()[0][:60]


# -------------------------------------------------------------------- a recorded series


def measure_series(series: Path, peers: str | None, chosen: list[str], rounds: int) -> str:
    """The table of one series."""
    steps = sorted(int(file.stem) for file in series.glob("*.pt"))
    names = [name for name in chosen if name != "milepost, overlap"]  # nothing is trained here that could be overlapped
    processes = [Process(name, peers) for name in names]
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    size = 0.0
    for _ in range(rounds):
        with scratch(None) as folder:
            for place, process in enumerate(processes):
                size = process.ask("open", folder=str(folder / str(place)), series=str(series)).get("bytes", size)
            for number, step in enumerate(steps):
                for process in processes:
                    _note(rows[process.candidate], process.ask("save", step=step), number)
            for cold in (True, False, True, False):
                for process in processes:
                    answer = process.ask("restore", step=steps[-1], cold=cold)
                    rows[process.candidate].setdefault("cold" if cold else "warm", []).append(
                        answer.get("seconds", _NAN)
                    )
                    if answer.get("wrong") and "trainable" not in process.candidate:
                        process.error = f"{answer['wrong']} tensors are not what was saved"
            for process in processes:
                process.ask("close")
    for process in processes:
        process.end()
    lines = [_series_row(process, rows[process.candidate], size) for process in processes]
    head = f"### {series.name}: {size / 1e6:.0f} MB, saved at steps {', '.join(map(str, steps))}"
    return f"{head}\n\n{table(['saver', *_SERIES_COLUMNS], lines)}"


def _note(row: dict[str, list[float]], answer: dict[str, Any], number: int) -> None:
    for name in ("held", "durable"):
        row.setdefault(name, []).append(answer.get(name, _NAN))
    row.setdefault(f"bytes {number}", []).append(answer.get("bytes", _NAN))


def _series_row(process: Process, row: dict[str, list[float]], size: float) -> list[object]:
    if process.error:
        return [f"{process.candidate}: {_short(process.error)}", *[_NAN] * len(_SERIES_COLUMNS)]
    cold, warm = statistics.median(row["cold"]), statistics.median(row["warm"])
    ratios = [round(statistics.median(row.get(f"bytes {number}", [_NAN])) / size, 3) for number in range(4)]
    return [
        process.candidate,
        statistics.median(row["held"]) * 1e3,
        max(row["held"]) * 1e3,
        statistics.median(row["durable"]) * 1e3,
        *ratios,
        cold * 1e3,
        size / cold / 1e9,
        warm * 1e3,
        size / warm / 1e9,
    ]


# -------------------------------------------------------------------- a real training


def measure_training(peers: str | None, chosen: list[str], saves: int, steps: int) -> str:
    """The table of a training that is and is not saved, turn by turn."""
    names = [name for name in chosen if name != "milepost, trainable"]
    blocks: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {name: [] for name in names}
    memory: dict[str, tuple[float, float]] = {}
    size = 0
    with scratch(None) as folder:
        processes = [Process(name, peers) for name in names]
        for place, process in enumerate(processes):
            size = process.ask("open", folder=str(folder / str(place))).get("bytes", size)
        for process in processes:
            watch = Memory(process.pid)
            for number in range(_WARM_UP):
                process.ask("block", steps=2, number=number, save=True)
            memory[process.candidate] = watch.stop()
        for number in range(_WARM_UP, _WARM_UP + saves):
            for process in processes:
                without = process.ask("block", steps=steps, number=number, save=False)
                with_save = process.ask("block", steps=steps, number=number, save=True)
                blocks[process.candidate].append((without, with_save))
        for process in processes:
            process.ask("close")
            process.end()
    rows = [_training_row(process, blocks[process.candidate], memory[process.candidate]) for process in processes]
    head = f"### A training of {steps} steps between two saves, {size / 1e6:.0f} MB, median of {saves}"
    return f"{head}\n\n{table(['saver', *_TRAINING_COLUMNS], rows)}"


def _training_row(
    process: Process, blocks: list[tuple[dict[str, Any], dict[str, Any]]], memory: tuple[float, float]
) -> list[object]:
    if process.error:
        return [f"{process.candidate}: {_short(process.error)}", *[_NAN] * len(_TRAINING_COLUMNS)]
    plain = statistics.median(update for without, _ in blocks for update in without["updates"])
    stalls = [with_save["held"] + max(0.0, with_save["updates"][0] - plain) for _, with_save in blocks]
    added = statistics.median(b["seconds"] for _, b in blocks) - statistics.median(a["seconds"] for a, _ in blocks)
    stall = statistics.median(stalls)
    beside = max(0.0, added - stall)
    return [process.candidate, stall * 1e3, max(stalls) * 1e3, added * 1e3, beside * 1e3, *memory]


class Memory:
    """Watches how much memory a process and its children hold, shared pages by halves, above what it began with."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start = self._now()
        self._peak = self._start
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.03):
            now = self._now()
            self._peak = max(self._peak, now, key=sum)

    def _now(self) -> tuple[float, float]:
        others = _descendants(self._pid)
        return _megabytes(self._pid), math.fsum(_megabytes(pid) for pid in others)

    def stop(self) -> tuple[float, float]:
        """Megabytes above the beginning at the peak: the process, its children."""
        self._stopped.set()
        self._thread.join()
        return self._peak[0] - self._start[0], self._peak[1]


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *_descendants(int(child))]
    except OSError:
        pass
    return found


def _megabytes(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e3
    except OSError:
        pass
    return 0.0


# -------------------------------------------------------------------- a state of a third of the memory


def measure_large(folder: Path, gigabytes: int) -> str:
    """One save and one load of a large state, raw and encoded: seconds, and the peaks of memory."""
    rows: list[list[object]] = []
    for name in ("milepost, raw", "milepost"):
        with scratch(str(folder)) as place:
            process = Process(name, None)
            size = process.ask("open_large", folder=str(place / "run"), gigabytes=gigabytes).get("bytes", 0)
            watch = Memory(process.pid)
            saved = process.ask("save_large")
            peaks = watch.stop()
            watch = Memory(process.pid)
            loaded = process.ask("restore_large")
            loading = watch.stop()
            process.ask("close")
            process.end()
        rows.append(
            [process.candidate if not process.error else f"{name}: {_short(process.error)}", size / 1e9,
             saved.get("held", _NAN), saved.get("durable", _NAN), saved.get("bytes", _NAN) / max(size, 1), *peaks,
             loaded.get("seconds", _NAN), sum(loading), loaded.get("wrong", 0)]
        )  # fmt: skip
    columns = [
        "saver",
        "state GB",
        "held s",
        "durable s",
        "bytes",
        "trainer MB",
        "writer MB",
        "load s",
        "load MB",
        "wrong",
    ]
    return f"### A large state\n\n{table(columns, rows)}"


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=Path, action="append", default=[], help="a folder of <step>.pt; repeatable")
    parser.add_argument("--training", action="store_true", help="what a save adds to a training's wall time")
    parser.add_argument("--large", type=Path, metavar="FOLDER", help="where ten free gigabytes are")
    parser.add_argument("--gigabytes", type=int, default=8, help="of the large state")
    parser.add_argument("--peers", help="interpreter of an environment with the other packages")
    parser.add_argument("--only", action="append", help="a candidate; repeatable; default: all")
    parser.add_argument("--rounds", type=int, default=2, help="how often each series is saved")
    parser.add_argument("--saves", type=int, default=7, help="of the training")
    parser.add_argument("--steps", type=int, default=6, help="of the training between two saves")
    given = parser.parse_args()
    chosen = given.only or list(CANDIDATES)
    print(f"{machine()}\n", flush=True)
    begun = time.monotonic()
    for series in given.series:
        of_frozen = "lora" in series.name
        names = [name for name in chosen if name != "milepost, trainable" or of_frozen]
        print(f"{measure_series(series, given.peers, names, given.rounds)}\n", flush=True)
    if given.training:
        print(f"{measure_training(given.peers, chosen, given.saves, given.steps)}\n", flush=True)
    if given.large is not None:
        print(f"{measure_large(given.large, given.gigabytes)}\n", flush=True)
    print(f"took {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
