"""What is left of a framework's training that was killed at a file event of a save, and does the same command go on?

``python -m torture.frameworks lightning`` kills at every event, ``--sample N`` at some. For each: the training is
killed, whatever files it left must load by the framework's own means, it is run again, and must then tell the same
numbers, bit for bit, as one that was not killed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import milepost
from milepost.cli.demo import differences

__all__ = ["sweep"]

#: Each offers ``train()``, ``complaints(folder)`` and ``WRITES_APART``.
FRAMEWORKS = {
    "lightning": "torture.framework_lightning",
    "accelerate": "torture.framework_accelerate",
}


def sweep(framework: str, folder: Path, sample: int | None = None, seed: int = 0) -> Iterator[str]:
    """Kill, go on, compare; yields one line for each thing that is wrong.

    Args:
        framework: A key of ``FRAMEWORKS``.
        folder: An empty folder to work in.
        sample: At how many events to kill; None: at all of them.
        seed: Of the sample.
    """
    module = import_module(FRAMEWORKS[framework])
    count = folder / "events"
    status = run_once(module, folder / "undisturbed", TORTURE_COUNT=str(count))
    if status != 0:
        yield f"the undisturbed training ended with {status}"
        return
    wanted = metrics_of(folder / "undisturbed")
    events = len(count.read_text().splitlines())
    kills = [(who, n) for n in range(1, events + 1) for who in _victims(module)]
    if sample is not None:
        kills = random.Random(seed).sample(kills, min(sample, len(kills)))
    print(f"{framework}: {events} file events, {len(kills)} kills", flush=True)
    for who, number in kills:
        for what in _kill_and_go_on(module, folder / f"{who}-{number}", f"{who}:{number}", wanted):
            yield f"{who}:{number}: {what}"


def _victims(module: ModuleType) -> tuple[str, ...]:
    return ("trainer", "writer", "both") if module.WRITES_APART else ("trainer",)


def _kill_and_go_on(module: ModuleType, folder: Path, kill: str, wanted: dict[str, dict[int, float]]) -> Iterator[str]:
    status = run_once(module, folder, TORTURE_KILL=kill)
    expected = 0 if kill.startswith("writer") else -signal.SIGKILL
    if status != expected:
        yield f"ended with {status}, not {expected}"
    yield from module.complaints(folder)
    if expected != 0:
        status = run_once(module, folder)
        if status != 0:
            yield f"the same command then ended with {status}"
            return
        yield from module.complaints(folder)
    yield from differences(wanted, metrics_of(folder))


def run_once(module: ModuleType, folder: Path, **environment: str) -> int:
    """Run ``train()`` in a forked child, which spares it the imports; its exit status, negative for a signal."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        _be_the_child(module, folder, environment)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _be_the_child(module: ModuleType, folder: Path, environment: dict[str, str]) -> None:
    try:
        os.chdir(folder)
        os.environ.update(environment)
        log = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        module.train()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def metrics_of(folder: Path) -> dict[str, dict[int, float]]:
    """Every number of the only run in ``folder``, by name and step."""
    (run,) = milepost.open(folder).runs()
    series = {name: run.series(name) for name in run.metrics()}
    return {name: dict(zip(one.step.tolist(), one.value.tolist(), strict=True)) for name, one in series.items()}


def main() -> None:
    """Entry of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("framework", choices=sorted(FRAMEWORKS))
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wrong = 0
        for what in sweep(arguments.framework, Path(folder), arguments.sample, arguments.seed):
            wrong += 1
            print(what, flush=True)
    print(f"{wrong} things are wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
