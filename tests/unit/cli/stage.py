"""How is a real store filled and asked? As a training and its companion write, as a person and a program read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from milepost.cli.app import app
from milepost.core.config import ExperimentConfig
from milepost.core.events import CheckpointChanged, Described, Event
from milepost.io.locks import OwnedLock
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.segment import new_log_id
from tests.architecture.sources import SOURCE

MAIN = "from milepost.cli.app import main; main()"


@dataclass
class Story:
    """One process that writes a run's log; ``lock`` is held until it "dies"."""

    layout: RunLayout
    log: DirectLog
    lock: OwnedLock

    def tell(self, *events: Event) -> Story:
        for event in events:
            self.log.append(event, step=getattr(event, "step", None))
        return self

    def train(self, steps: range, **metrics: Callable[[int], float]) -> Story:
        for step in steps:
            self.log.log({name: value(step) for name, value in metrics.items()}, step)
        return self

    def die(self) -> None:
        self.log.close()
        self.lock.release(unlink=True)


@dataclass
class Stage:
    """A store, and what is needed to fill it and to ask about it."""

    root: Path
    stories: list[Story]

    def run(self, run_id: str, *, role: str = "trainer", attempt: int = 1, **metadata: Any) -> Story:
        """A process of the run ``run_id`` that is alive."""
        layout = RunLayout.from_config(ExperimentConfig(root=str(self.root)), run_id)
        layout.log.mkdir(parents=True, exist_ok=True)
        layout.experiment.mkdir(parents=True, exist_ok=True)
        if not layout.metadata.exists():
            fields = {"name": run_id.partition("_")[0], "start_time": 1.79e9 + len(self.stories)} | metadata
            layout.metadata.write_text(json.dumps(fields))
        log_id = new_log_id()
        lock = OwnedLock(layout.log_lock(log_id))
        assert lock.acquire()
        story = Story(layout, DirectLog(layout, log_id), lock)
        begin_log(story.log, role=role, attempt=attempt)
        self.stories.append(story)
        return story

    def ask(self, *words: str) -> Result:
        """What the command prints, in this process."""
        return CliRunner().invoke(app, [*words, "--dir", str(self.root)])

    def ask_json(self, *words: str) -> Any:
        result = self.ask(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", "MILEPOST_DIR": str(self.root)}

    def call(self, *words: str, first: str = "") -> subprocess.CompletedProcess[str]:
        """The command as a process of its own, with its exit code; ``first`` is run before it."""
        return subprocess.run(
            [sys.executable, "-c", f"{first}\n{MAIN}", *words],
            env=self.environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def committed(layout: RunLayout, step: int, *, present: bool = True, **info: Any) -> CheckpointChanged:
    """The record of a committed checkpoint; a file of that name is put there too."""
    filename = f"checkpoint_20261124-133155-000001_{step}{'_best' if info.get('is_best') else ''}.milepost"
    path = layout.checkpoints / filename
    if present:
        path.write_bytes(b"-")
    fields = {"filename": filename, "path": str(path), "experiment_id": layout.experiment_id, "step": step}
    fields |= {
        "timestamp": 1.79e9 + step,
        "size": 273_000_000,
        "stall_ms": 18.4,
        "metrics": {"val/loss": 1 / (step + 1)},
    }
    return CheckpointChanged(step=step, action="committed", filename=filename, info=fields | info)


def described(**fields: Any) -> Described:
    return Described(fields=fields)
