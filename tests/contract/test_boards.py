"""A whole training with everything that can be logged: TensorBoard and W&B show it, out of their own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.unit.trackers import wandb_file

_TRAINS = """
import numpy as np
import torch
import milepost

config = milepost.ExperimentConfig(
    wandb_project="boards", save_frequency=2, best_metric="loss", system_metrics_every=0.2, exit_timeout=120.0
)
with milepost.start("boards", config=config, hyperparameters={"lr": 0.1}) as run:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    run.resume(model, optimizer)
    run.log_model_graph(model, torch.zeros(1, 4))
    for step in range(6):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        run.log({"loss": 1.0 / (step + 1)}, step=step)
        run.log_histogram("weights", model.weight.detach(), step=step)
        run.log_image("grid", [np.full((4, 4), shade, np.uint8) for shade in (0, 100, 200)], step=step, caption="c")
        if run.should_save(step):
            run.save_checkpoint(step=step, metrics={"loss": 1.0 / (step + 1)})
    run.log_audio("voice", np.sin(np.arange(800) / 10), 8000)
    run.log_table("errors", ["text", "score"], [["a", 0.5], ["b", float("nan")]])
    run.log_html("report", "<p>hello</p>")
    run.log_text("words", "some words")
    run.alert("look at this", "now")
    run.tag("good")
    run.flush()
print(run.id)
"""


def _trained(folder: Path) -> str:
    """Train in a process of its own, with a home of its own; the id of the run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "XDG_"))}
    home = str(folder / "home")
    environment |= {"HOME": home, "NETRC": f"{home}/netrc", "WANDB_MODE": "offline"}
    environment["PYTHONPATH"] = str(Path("src").absolute())
    done = subprocess.run(
        [sys.executable, "-c", _TRAINS], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_everything_logged_is_at_both_boards(tmp_path: Path):
    run_id = _trained(tmp_path)
    sizes = {"scalars": 0, "images": 0, "histograms": 0, "audio": 0, "tensors": 0}
    shown = EventAccumulator(str(tmp_path / "runs" / run_id), size_guidance=sizes)
    shown.Reload()
    assert [point.value for point in shown.Scalars("loss")] == [_as_32_bits(1.0 / (step + 1)) for step in range(6)]
    assert [event.step for event in shown.Histograms("weights")] == list(range(6))
    assert [event.histogram_value.num for event in shown.Histograms("weights")] == [8.0] * 6
    assert [[event.step for event in shown.Images(f"grid/{place}")] for place in range(3)] == [list(range(6))] * 3
    assert len(shown.Audio("voice")) == 1
    assert {"errors", "report", "words", "alerts/look at this", "tags"} <= set(shown.Tags()["tensors"])
    assert any(tag.startswith("system/") for tag in shown.Tags()["scalars"])
    assert len(shown.Graph().node) > 1
    _is_at_wandb(tmp_path, run_id)


def _as_32_bits(value: float) -> float:
    import numpy as np

    return float(np.float32(value))


def _is_at_wandb(folder: Path, run_id: str) -> None:
    (path,) = (folder / "experiments" / run_id / "wandb").rglob("*.wandb")
    rows = wandb_file.rows(path)
    losses = [(row["trainer/global_step"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [(step, 1.0 / (step + 1)) for step in range(6)]
    kinds: dict[str, list[Any]] = {}
    for row in rows:
        for name in ("weights", "grid", "voice", "errors", "report", "words"):
            if f"{name}/_type" in row:
                kinds.setdefault(name, []).append((row["trainer/global_step"], row[f"{name}/_type"]))
    assert kinds["weights"] == [(step, "histogram") for step in range(6)]
    assert kinds["grid"] == [(step, "images/separated") for step in range(6)]
    assert {name: [kind for _, kind in found] for name, found in kinds.items() if name not in {"weights", "grid"}} == {
        "voice": ["audio-file"],
        "errors": ["table-file"],
        "report": ["html-file"],
        "words": ["html-file"],
    }
    assert any("system/seconds" in row for row in rows)
    sent = wandb_file.records(path)
    models = [one.artifact for one in sent if one.HasField("artifact") and one.artifact.name == f"{run_id}-model"]
    assert [set(model.aliases) >= {"final", "best"} for model in models] == [True]
    assert json.loads(models[0].metadata)["step"] == 4
    assert [one.alert.title for one in sent if one.HasField("alert")] == ["look at this"]
    assert list([one.run for one in sent if one.HasField("run")][-1].tags) == ["good"]
