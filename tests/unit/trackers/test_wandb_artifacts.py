"""What W&B gets of checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file

from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.core.config import ExperimentConfig
from milepost.core.events import CheckpointChanged, Event, Noticed, StatusChanged
from milepost.core.records import CheckpointInfo
from milepost.trackers.protocol import RunDescription
from milepost.trackers.wandb import WandbTracker
from milepost.trackers.wandb_artifacts import ModelArtifacts
from tests.unit.trackers import wandb_file
from tests.unit.trackers.story import follower, identified, told

COMPLETED = StatusChanged(status="completed")


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with wandb_file.no_login(tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        yield


def _described(folder: Path, **fields: Any) -> RunDescription:
    return RunDescription(id="exp_1", name="exp", project="nlp", folder=folder / "wandb", **fields)


def _checkpoints(folder: Path, *losses: float, best: int | None = None, **settings: Any) -> list[CheckpointInfo]:
    """Checkpoints of a small model that holds its step, one for each loss."""
    saver = ModelCheckpointer(ExperimentConfig(root=str(folder), max_checkpoints=9, **settings))
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for step, loss in enumerate(losses):
        torch.nn.init.constant_(model.weight, step)
        saver.save_checkpoint(model, optimizer, step=step, metrics={"loss": loss}, is_best=step == best)
    saver.wait()
    return saver.list_checkpoints()


def _committed(infos: list[CheckpointInfo]) -> list[Event]:
    return [
        CheckpointChanged(step=info.step, action="committed", filename=info.filename, info=info.to_fields())
        for info in infos
    ]


def _deliver(folder: Path, events: list[Event], **fields: Any) -> list[Noticed]:
    notices: list[Noticed] = []
    one = follower(
        folder,
        lambda: WandbTracker(notices.append),
        told([identified(), *events]),
        run=_described(folder, **fields),
        notices=notices,
        name="wandb",
    )
    one.start()
    assert one.finish(time.monotonic() + 60), notices
    return notices


def _artifacts(folder: Path, name: str) -> list[Any]:
    files = sorted((folder / "wandb").rglob("*.wandb"))
    sent = [one.artifact for path in files for one in wandb_file.records(path) if one.HasField("artifact")]
    return [artifact for artifact in sent if artifact.name == name]


def _local(artifact: Any, name: str) -> Path:
    (entry,) = [entry for entry in artifact.manifest.contents if entry.path == name]
    return Path(entry.local_path)


def test_every_checkpoint_is_a_version_by_reference_with_its_step_and_metrics(tmp_path: Path):
    infos = _checkpoints(tmp_path, 3.0, 2.0, best=1)
    gone = CheckpointChanged(step=4, action="committed", filename="x", info={"path": "/gone/x", "step": 4})
    assert _deliver(tmp_path, [gone, *_committed(infos)]) == []
    first, second = _artifacts(tmp_path, "exp_1-checkpoint")
    assert (first.type, set(first.aliases)) == ("model", {"latest", "step-0"})
    assert set(second.aliases) == {"latest", "step-1", "best"}
    assert json.loads(second.metadata)["metrics"] == {"loss": 2.0}
    assert second.manifest.contents[0].ref == f"file://{infos[1].path}"


def test_the_best_and_the_last_are_sent_as_weights_that_any_reader_loads(tmp_path: Path):
    infos = _checkpoints(tmp_path, 3.0, 1.0, 2.0, best=1)
    assert _deliver(tmp_path, [*_committed(infos), COMPLETED]) == []
    best, final = _artifacts(tmp_path, "exp_1-model")
    assert (set(best.aliases), set(final.aliases)) == ({"latest", "step-1", "best"}, {"latest", "step-2", "final"})
    weights = load_file(_local(best, "model.safetensors"))
    assert weights.keys() == {"weight", "bias"}
    assert weights["weight"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert load_file(_local(final, "model.safetensors"))["weight"][0, 0] == 2.0
    manifest = json.loads(_local(best, "manifest.json").read_text())
    assert manifest["run"] == {"id": "exp_1", "name": "exp"}
    assert (manifest["checkpoint"]["step"], manifest["checkpoint"]["metrics"]) == (1, {"loss": 1.0})
    assert manifest["weights"]["bytes"] == _local(best, "model.safetensors").stat().st_size
    assert "path" not in manifest["checkpoint"]


def test_offline_nothing_lies_outside_of_the_folder_that_is_synced(tmp_path: Path):
    infos = _checkpoints(tmp_path, *range(6, 0, -1))
    _deliver(tmp_path, [*_committed(infos), COMPLETED], best_metric="loss")
    (folder,) = (tmp_path / "wandb").rglob("offline-run-*")
    made = list(tmp_path.rglob("model.safetensors"))
    assert made == [folder / "artifacts" / infos[-1].filename / "model.safetensors"]
    assert {path.suffix for path in (tmp_path / "home").rglob("*") if path.is_file()} <= {".log"}


def test_the_best_by_best_metric_needs_no_mark(tmp_path: Path):
    infos = _checkpoints(tmp_path, 3.0, 1.0, 2.0)
    _deliver(tmp_path, [*_committed(infos), COMPLETED], best_metric="loss")
    assert "best" in next(a for a in _artifacts(tmp_path, "exp_1-model") if "step-1" in a.aliases).aliases


def test_a_damaged_checkpoint_is_said_once_and_the_run_goes_on(tmp_path: Path):
    infos = _checkpoints(tmp_path, 3.0, 2.0, best=0)
    for info in infos:
        info.path.write_bytes(info.path.read_bytes()[:-100])
    notices = _deliver(tmp_path, [*_committed(infos), COMPLETED])
    assert [notice.topic for notice in notices] == ["media"]
    assert infos[0].filename in notices[0].message
    assert list((tmp_path / "wandb").rglob("model.safetensors*")) == []
    assert len(_artifacts(tmp_path, "exp_1-checkpoint")) == 2


def test_a_checkpoint_that_retention_removed_before_the_end_is_no_news(tmp_path: Path):
    infos = _checkpoints(tmp_path, 3.0)
    events = [*_committed(infos), COMPLETED]
    artifacts = ModelArtifacts(wandb, _Online(), _described(tmp_path), {}, _unexpected)
    artifacts.committed(events[0])
    infos[0].path.unlink()
    artifacts.ended(COMPLETED)
    assert list(tmp_path.rglob("model.safetensors")) == []


def test_without_torch_the_weights_are_made_all_the_same(tmp_path: Path):
    infos = _checkpoints(tmp_path, 3.0, best=0)
    (tmp_path / "fields.json").write_text(json.dumps([info.to_fields() for info in infos]))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    subprocess.run([sys.executable, "-W", "error", "-c", _WITHOUT_TORCH, str(tmp_path)], check=True, env=environment)
    assert len(_artifacts(tmp_path, "exp_1-model")) == 1


_WITHOUT_TORCH = """
import json, sys, time
sys.modules["torch"] = None
from pathlib import Path
from milepost.core.events import CheckpointChanged, StatusChanged
from milepost.trackers.protocol import RunDescription
from milepost.trackers.wandb import WandbTracker
from tests.unit.trackers.story import follower, told

folder = Path(sys.argv[1])
infos = json.loads((folder / "fields.json").read_text())
events = [CheckpointChanged(step=i["step"], action="committed", filename=i["filename"], info=i) for i in infos]
run = RunDescription(id="exp_1", name="exp", project="nlp", folder=folder / "wandb")
one = follower(folder, WandbTracker, told([*events, StatusChanged(status="completed")]), run=run, name="wandb")
one.start()
assert one.finish(time.monotonic() + 60)
"""


@dataclass
class _Upload:
    """An artifact on its way to a server that is not here; ``done`` is what that would say."""

    aliases: list[str]
    done: bool = False

    def wait(self, timeout: float) -> None:
        if not self.done:
            raise wandb.Error(f"not within {timeout} s")


@dataclass
class _Online:
    """Stands for W&B's run where only its server could answer."""

    offline: bool = False
    uploads: list[_Upload] = field(default_factory=list)
    references: list[_Upload] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def log_artifact(self, artifact: Any, aliases: list[str]) -> _Upload:
        upload = _Upload(aliases)
        (self.uploads if artifact.name.endswith("-model") else self.references).append(upload)
        return upload


def _unexpected(what: str, cure: str) -> None:
    pytest.fail(f"{what}: {cure}")


def _told(infos: list[CheckpointInfo], end: StatusChanged, described: RunDescription) -> _Online:
    online = _Online()
    artifacts = ModelArtifacts(wandb, online, described, {}, _unexpected)
    for event in _committed(infos):
        artifacts.committed(event)
    artifacts.ended(end)
    return online


@pytest.mark.parametrize("status", ["failed", "killed", "paused"])
def test_the_last_of_a_run_that_may_go_on_is_not_final(tmp_path: Path, status: Any):
    online = _told(_checkpoints(tmp_path, 3.0, 2.0), StatusChanged(status=status), _described(tmp_path))
    assert online.uploads == []


@pytest.mark.parametrize(("wanted", "references"), [("references", 2), ("none", 0)])
def test_a_setting_keeps_weights_or_all_of_it_here(tmp_path: Path, wanted: str, references: int):
    infos = _checkpoints(tmp_path, 3.0, 2.0, best=1)
    online = _told(infos, COMPLETED, _described(tmp_path, artifacts=wanted))
    assert (len(online.uploads), len(online.references)) == (0, references)


def test_online_each_best_is_sent_at_once_and_its_file_removed_when_it_is_there(tmp_path: Path):
    infos = _checkpoints(tmp_path, 5.0, 4.0, 3.0, 2.0, 1.0)
    online, described = _Online(), _described(tmp_path, best_metric="loss")
    artifacts = ModelArtifacts(wandb, online, described, {}, _unexpected)
    events = _committed(infos)

    def lying() -> set[str]:
        return {path.parent.name for path in (tmp_path / "wandb" / "uploading").rglob("model.safetensors")}

    artifacts.committed(events[0])
    artifacts.committed(events[1])
    artifacts.committed(events[2])  # two are under way: this one has to wait
    assert lying() == {infos[0].filename, infos[1].filename}
    online.uploads[0].done = True
    artifacts.committed(events[3])
    assert lying() == {infos[1].filename, infos[3].filename}
    artifacts.committed(events[4])
    artifacts.ended(StatusChanged(status="failed"))
    assert [upload.aliases[1:] for upload in online.uploads] == [
        ["step-0", "best"],
        ["step-1", "best"],
        ["step-3", "best"],
        ["step-4", "best"],
    ]
    artifacts.finished()
    assert lying() == set()


def test_what_a_crash_left_of_an_upload_is_removed_at_the_next_start(tmp_path: Path):
    left = tmp_path / "wandb" / "uploading" / "checkpoint" / "model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    ModelArtifacts(wandb, _Online(), _described(tmp_path), {}, _unexpected)
    assert not left.exists()


def test_a_best_that_was_sent_is_not_sent_again_by_the_next_process(tmp_path: Path):
    (info,) = _checkpoints(tmp_path, 5.0, best=0)
    online, described = _Online(), _described(tmp_path)
    artifacts = ModelArtifacts(wandb, online, described, {}, _unexpected)
    artifacts.committed(_committed([info])[0])
    again = ModelArtifacts(wandb, online, described, json.loads(json.dumps(artifacts.state())), _unexpected)
    again.ended(StatusChanged(status="failed"))
    assert len(online.uploads) == 1
    again.ended(COMPLETED)
    assert online.uploads[-1].aliases == ["latest", "step-0", "final", "best"]
