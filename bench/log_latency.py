"""How long does one call hold the training, of milepost and of what one would take instead?

Four floats per call, in a tight loop, each logger in a process of its own, one after the other on the same machine:

    python bench/log_latency.py --peers /path/to/venv/bin/python

``--peers`` names the interpreter of an environment with wandb, mlflow, trackio, tensorboard, tensorboardX, dvclive and
swanlab; what is missing there is left out and said. The guests of milepost need tensorboard and wandb beside milepost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from measuring import machine, percentile, scratch, table

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Logger:
    """``log(metrics, step)`` and ``finish()`` of one candidate."""

    log: Callable[[Metrics, int], Any]
    finish: Callable[[], Any]


def milepost(*, tensorboard: bool, wandb: bool) -> Logger:
    import milepost as package

    run = package.start(
        "latency",
        tensorboard_dir="runs" if tensorboard else None,
        wandb_project="latency" if wandb else None,
        capture_code=False,
        exit_timeout=120.0,
    )
    return Logger(run.log, run.end)


def deque_of_copies() -> Logger:
    kept: deque[tuple[int, Metrics]] = deque()
    return Logger(lambda metrics, step: kept.append((step, dict(metrics))), kept.clear)


def json_lines() -> Logger:
    file = open("metrics.jsonl", "w")  # noqa: SIM115 - closed by finish
    return Logger(lambda metrics, step: file.write(json.dumps({"step": step, **metrics}) + "\n"), file.close)


def wandb() -> Logger:
    import wandb as package

    run = package.init(project="latency", mode="offline", settings=package.Settings(silent=True))
    return Logger(lambda metrics, step: run.log(metrics, step=step), run.finish)


def mlflow(*, synchronous: bool) -> Logger:
    import mlflow as package

    package.set_tracking_uri(f"sqlite:///{os.getcwd()}/mlflow.db")
    package.set_experiment("latency")
    package.start_run()

    def finish() -> None:
        package.flush_async_logging()
        package.end_run()

    return Logger(lambda metrics, step: package.log_metrics(metrics, step=step, synchronous=synchronous), finish)


def summary_writer(module: str) -> Logger:
    import importlib

    writer = importlib.import_module(module).SummaryWriter("events")

    def log(metrics: Metrics, step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return Logger(log, writer.close)


def trackio() -> Logger:
    import trackio as package

    package.init(project="latency")
    return Logger(lambda metrics, step: package.log(metrics, step=step), package.finish)


def swanlab() -> Logger:
    import swanlab as package

    package.init(project="latency", mode="offline", logdir=os.getcwd())
    return Logger(lambda metrics, step: package.log(metrics, step=step), package.finish)


def dvclive() -> Logger:
    from dvclive import Live

    live = Live(dir="live", save_dvc_exp=False, dvcyaml=None, report=None)

    def log(metrics: Metrics, step: int) -> None:
        live.step = step
        for name, value in metrics.items():
            live.log_metric(name, value)

    return Logger(log, live.end)


OURS: dict[str, Callable[[], Logger]] = {
    "milepost": lambda: milepost(tensorboard=False, wandb=False),
    "milepost + TensorBoard": lambda: milepost(tensorboard=True, wandb=False),
    "milepost + W&B offline": lambda: milepost(tensorboard=False, wandb=True),
    "milepost + TensorBoard + W&B": lambda: milepost(tensorboard=True, wandb=True),
}
PEERS: dict[str, Callable[[], Logger]] = {
    "json lines, buffered file": json_lines,
    "trackio": trackio,
    "swanlab offline": swanlab,
    "wandb offline": wandb,
    "tensorboard (torch SummaryWriter)": lambda: summary_writer("torch.utils.tensorboard"),
    "tensorboardX": lambda: summary_writer("tensorboardX"),
    "dvclive": dvclive,
    "mlflow, asynchronous": lambda: mlflow(synchronous=False),
    "mlflow, SQLite": lambda: mlflow(synchronous=True),
    "floor: a dict copied to a deque": deque_of_copies,
}
#: Slow enough that fewer calls tell as much.
FEWER_CALLS = {"mlflow, asynchronous": 10, "mlflow, SQLite": 20, "dvclive": 5}


def measure(name: str, calls: int, pause: float) -> dict[str, float]:
    """Log ``calls`` times; microseconds of the calls, and seconds of what comes after."""
    logger = (OURS | PEERS)[name]()
    took: list[int] = []
    clock = time.perf_counter_ns
    begun = time.perf_counter()
    for step in range(calls):
        metrics = {"loss": 1.0 / (step + 1), "accuracy": step * 1e-5, "learning_rate": 2e-5, "grad_norm": 0.5}
        before = clock()
        logger.log(metrics, step)
        took.append(clock() - before)
        if pause:
            time.sleep(pause)
    looped = time.perf_counter()
    logger.finish()
    finished = time.perf_counter()
    return {
        "calls": calls,
        "p50": percentile(took, 0.5) / 1e3,
        "p99": percentile(took, 0.99) / 1e3,
        "p99.9": percentile(took, 0.999) / 1e3,
        "max": max(took) / 1e3,
        "points": 4 * calls / (looped - begun),
        "finish": finished - looped,
    }


def measured_apart(name: str, python: str, calls: int, pause: float) -> dict[str, float] | str:
    """The measurement in a process of its own; the last line of its error if it has none."""
    command = [python, __file__, "--one", name, "--calls", str(calls), "--pause", str(pause)]
    with scratch() as folder:
        quiet = {
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "TRACKIO_DIR": str(folder),
            "HF_HOME": str(folder),
            "GIT_PYTHON_REFRESH": "quiet",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        environment = os.environ | quiet
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"calls"')]
    if answers:
        return dict(json.loads(answers[-1]))
    return (done.stderr.strip().splitlines() or ["no answer"])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="interpreter of the peers' environment; without it only milepost is measured")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two calls, as a training step makes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.calls, given.pause)), flush=True)
        os._exit(0)  # what a peer leaves running is not ours to wait for
    rows, missing = [], []
    for name in OURS | (PEERS if given.peers else {}):
        python = sys.executable if name in OURS else given.peers
        calls = given.calls // FEWER_CALLS.get(name, 1)
        found = measured_apart(name, python, calls, given.pause)
        if isinstance(found, str):
            missing.append(f"- {name}: {found}")
        else:
            rows.append([name, *found.values()])
    header = ["logger", "calls", "p50 us", "p99 us", "p99.9 us", "max us", "points/s", "finish s"]
    print(f"{machine()}\n\n{table(header, rows)}")
    if missing:
        print("\n".join(["", "Left out:", *missing]))


if __name__ == "__main__":
    main()
