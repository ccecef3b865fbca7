"""Does a training that a framework drives go on after a kill at any one system call of a save, with the same losses?

``python -m torture.framework_calls --points 40 huggingface-callback huggingface-mixin huggingface-alone``

One process imports the framework; each training is a fork of it. A training stops at the gate before its second save;
there a tracer begins to count its system calls, and kills it on entry of the one it was told. Then the same training
starts again in the same folder, and what it logged in the end is compared with the losses of an undisturbed one, bit
for bit. A training is a function ``train(gate)``: it calls ``gate("begin")`` before a save and ``gate("end")`` behind
it, keeps its losses as ``{step: loss.hex()}`` in ``losses.json`` of its working folder, and goes on from what it finds
there. :data:`TRAININGS` names them; a framework adds one line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from torture.tracer import Tracer

__all__ = ["TRAININGS", "Kills", "main", "sweep"]

Gate = Callable[[str], None]
Training = Callable[[Gate], None]

#: By name: module, function and its arguments.
TRAININGS: dict[str, tuple[str, str, dict[str, bool]]] = {
    "huggingface-alone": ("torture.framework_huggingface", "train", {"alone": True}),
    "huggingface-callback": ("torture.framework_huggingface", "train", {}),
    "huggingface-mixin": ("torture.framework_huggingface", "train", {"fast": True}),
}


@dataclass(slots=True)
class Kills:
    """What became of the kills inside of one save.

    Attributes:
        name: Of the training.
        calls: System calls of the save.
        killed: How many trainings died at one of them.
        problems: A sentence for each that did not go on as if nothing had happened.
    """

    name: str
    calls: int = 0
    killed: int = 0
    problems: list[str] = field(default_factory=list)


def sweep(name: str, points: int) -> Kills:
    """Kill the training ``name`` at ``points`` system calls, evenly spread over its second save; 0: at each."""
    module, function, arguments = TRAININGS[name]
    training: Training = partial(getattr(importlib.import_module(module), function), **arguments)
    folder = Path(tempfile.mkdtemp(prefix=f"milepost-{name}-"))
    result = Kills(name)
    _, result.calls = _run(training, folder / "undisturbed", kill_at=0)
    expected = _losses(folder / "undisturbed")
    step = max(1, result.calls // points) if points else 1
    for number in range(1, result.calls + 1, step):
        place = folder / str(number)
        status, _ = _run(training, place, kill_at=number)
        if status != signal.SIGKILL:
            continue
        result.killed += 1
        again, _ = _run(training, place, kill_at=None)
        if again != 0 or _losses(place) != expected:
            what = f"ended with {again}" if again else "has other losses"
            result.problems.append(f"{name}, killed at call {number}: the next one {what}: {place}")
        else:
            shutil.rmtree(place)
        print(f"{name} {number}/{result.calls}: {len(result.problems)} problems", flush=True)
    return result


def _losses(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / "losses.json").read_text()))
    except (OSError, ValueError):
        return {}


def _run(training: Training, folder: Path, *, kill_at: int | None) -> tuple[int, int]:
    """Run it in a fork; the status that ``waitpid`` gives, and how many calls were counted. None: no gate."""
    folder.mkdir(exist_ok=True)
    to_parent, to_child = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(to_parent[0])
        os.close(to_child[1])
        _be_the_training(training, folder, None if kill_at is None else (to_parent[1], to_child[0]))
    os.close(to_parent[1])
    os.close(to_child[0])
    calls = 0
    tracer: Tracer | None = None
    with os.fdopen(to_parent[0]) as reports, os.fdopen(to_child[1], "wb", buffering=0) as answers:
        for line in reports:
            if line == "begin\n":
                tracer = Tracer(child, kill_at=kill_at or 0)
            elif tracer is not None:
                calls = tracer.count
                tracer.stop()
                tracer = None
            with suppress(BrokenPipeError):  # it died at its first call
                answers.write(b"go\n")
    if tracer is not None:
        tracer.stop()
    return os.waitpid(child, 0)[1], calls


def _be_the_training(training: Training, folder: Path, pipes: tuple[int, int] | None) -> None:
    """In the fork: never returns."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        training(_gate(pipes))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _gate(pipes: tuple[int, int] | None) -> Gate:
    """Stops at the second save only: by then everything is as it is in the middle of a training."""
    saves = 0

    def gate(place: str) -> None:
        nonlocal saves
        saves += place == "begin"
        if pipes is not None and saves == 2:
            os.write(pipes[0], f"{place}\n".encode())
            os.read(pipes[1], 16)

    return gate


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep the trainings named; 1 if one of them, but for the framework alone, did not go on as it must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="+", choices=TRAININGS)
    parser.add_argument("--points", type=int, default=0, help="kills for each training; 0: at every system call")
    given = parser.parse_args(arguments)
    results = [sweep(name, given.points) for name in given.trainings]
    print("\n| training | system calls of a save | killed | goes on, losses bit-equal |\n|---|---|---|---|")
    for one in results:
        print(f"| {one.name} | {one.calls} | {one.killed} | {one.killed - len(one.problems)} |")
    problems = [problem for one in results if not one.name.endswith("-alone") for problem in one.problems]
    for problem in problems[:50]:
        print(f"- {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
