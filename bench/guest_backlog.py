"""Does a guest that has a million points to catch up with slow the training?

    python bench/guest_backlog.py

Steps of a few milliseconds on one thread, measured three times in the same process: without a run, with an idle run,
and while the companion feeds a backlog to TensorBoard. Its processor time says whether it really was at work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from log_sustained import companion_of_this_process
from measuring import machine, percentile, scratch, table


def make_step(milliseconds: float) -> Callable[[], None]:
    """A training step of about ``milliseconds``: small operations with Python between them."""
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256))
    inputs = torch.randn(64, 256)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def once() -> None:
        loss = model(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(20):
        once()
    begun = time.perf_counter()
    for _ in range(20):
        once()
    repeats = max(1, round(milliseconds / 1000 / ((time.perf_counter() - begun) / 20)))

    def step() -> None:
        for _ in range(repeats):
            once()

    return step


def measure(name: str, steps: int, step: Callable[[], None], log: Callable[[int], None] | None) -> list[object]:
    import psutil

    companion = companion_of_this_process()
    process = psutil.Process(companion) if companion else None
    busy_before = sum(process.cpu_times()[:2]) if process else 0.0
    took = []
    begun = time.perf_counter()
    for number in range(steps):
        before = time.perf_counter()
        step()
        if log is not None:
            log(number)
        took.append((time.perf_counter() - before) * 1000)
    seconds = time.perf_counter() - begun
    busy = (sum(process.cpu_times()[:2]) - busy_before) / seconds * 100 if process else 0.0
    return [name, percentile(took, 0.5), percentile(took, 0.99), max(took), busy]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--milliseconds", type=float, default=3.0)
    given = parser.parse_args()
    step = make_step(given.milliseconds)
    rows = [measure("no run", given.steps, step, None)]
    import milepost

    with scratch() as folder:
        run = milepost.start("backlog", root=str(folder), capture_code=False, exit_timeout=600.0)
        time.sleep(2.0)  # the companion has started and captured the environment
        rows.append(measure("run, nothing to catch up", given.steps, step, lambda n: run.log({"loss": 1.0}, n)))
        for number in range(given.points // 4):
            run.log({"a": 1.0, "b": number * 0.5, "c": 2e-5, "d": 0.25}, given.steps + number)
        rows.append(
            measure(f"run, {given.points:,} points behind", given.steps, step, lambda n: run.log({"loss": 1.0}, n))
        )
        run.end()
    print(machine(), "\n")
    print(table(["", "step p50 ms", "p99 ms", "max ms", "companion CPU %"], rows))


if __name__ == "__main__":
    main()
