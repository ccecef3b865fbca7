"""Which checkpoints become artifacts at W&B, and what is in them?

Every checkpoint becomes a version of ``<run>-checkpoint``, by reference: step, metrics and path; its bytes stay in
``checkpoint_dir``. The best one, pinned ones and the last of a completed run also become versions of ``<run>-model``:
``model.safetensors``, which any reader of that format loads, and ``manifest.json``. Both are made here out of the
checkpoint, without torch.

Online they are made when the checkpoint is committed, uploaded by W&B's service process, and removed once it has them.
Offline W&B would keep every one of them on this disk until ``wandb sync``: there the best and the last are made once,
at the end of the run, in the folder that is synced.

**On crash**: what was being uploaded is removed at the next start; the checkpoint is told again, and exported again if
retention has not removed it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from milepost.core.errors import MilepostError
from milepost.core.events import CheckpointChanged, StatusChanged
from milepost.core.records import CheckpointInfo
from milepost.runs.metadata import as_json
from milepost.trackers.protocol import RunDescription

__all__ = ["ModelArtifacts"]

_log = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_UPLOADING = "uploading"
#: While so many uploads are not done, a further best checkpoint has to wait: to the next one, or to the end of the run.
_MOST_UPLOADS = 2


class ModelArtifacts:
    """Tells W&B of the checkpoints of one run.

    Args:
        wandb: The package.
        run: W&B's run.
        described: Ours; its ``artifacts`` says what is wanted.
        known: The :meth:`state` after the last checkpoint that was told.
        left_out: Told, with a cure, of a checkpoint that cannot be exported.
    """

    def __init__(
        self,
        wandb: Any,
        run: Any,
        described: RunDescription,
        known: Mapping[str, Any],
        left_out: Callable[[str, str], None],
    ) -> None:
        self._wandb = wandb
        self._run = run
        self._described = described
        self._left_out = left_out
        self._last: dict[str, Any] = dict(known.get("last", {}))
        self._best: dict[str, Any] = dict(known.get("best", {}))
        self._sent: str = known.get("sent", "")
        self._uploads: list[tuple[Any, Path]] = []
        # Offline runs keep what is to be synced in a folder of their own; what lies here was left by a crash.
        shutil.rmtree(described.folder / _UPLOADING, ignore_errors=True)

    def state(self) -> dict[str, Any]:
        """What later calls depend on, fit for JSON."""
        return {"last": self._last, "best": self._best, "sent": self._sent}

    def committed(self, event: CheckpointChanged) -> None:
        """Take a checkpoint that is complete."""
        info = {"filename": event.filename, "step": event.step, **event.info}
        is_best = self._is_best(info)
        if is_best:
            self._best = dict(info)
            self._run.summary.update(_best_values(info))
        self._last = dict(info)
        if self._described.artifacts == "none" or not os.path.isfile(info.get("path", "")):
            return  # the latter: retention has removed it since
        self._refer(info, ["best"] if is_best else [])
        if is_best or info.get("pinned"):
            self._send_now(info, ["best"] if is_best else ["pinned"])

    def ended(self, end: StatusChanged) -> None:
        """The run is over: the best that has not been sent, and the last one of a completed run."""
        final = self._last if end.status == "completed" else {}
        if self._best and self._best["filename"] not in {self._sent, final.get("filename")}:
            self._send(self._best, ["best"])
        if final:
            best = ["best"] if self._best.get("filename") == final["filename"] else []
            self._send(final, ["final", *best])

    def finished(self) -> None:
        """W&B has everything: remove what was made for the uploads."""
        self._uploads.clear()
        shutil.rmtree(self._described.folder / _UPLOADING, ignore_errors=True)

    def _is_best(self, info: Mapping[str, Any]) -> bool:
        """Whether the caller marked it, or it is the best by ``best_metric`` so far."""
        if info.get("is_best"):
            return True
        name, sign = self._described.best_metric, -1.0 if self._described.best_mode == "min" else 1.0
        value, before = (content.get("metrics", {}).get(name) for content in (info, self._best))
        if self._best.get("is_best") or not isinstance(value, (int, float)) or math.isnan(value):
            return False
        return not isinstance(before, (int, float)) or sign * value > sign * before

    def _refer(self, info: Mapping[str, Any], aliases: list[str]) -> None:
        artifact = self._artifact("checkpoint", info, ("step", "epoch", "metrics", "format", "size"))
        artifact.add_reference(f"file://{info['path']}", name=info["filename"], checksum=False)
        self._run.log_artifact(artifact, aliases=["latest", f"step-{info['step']}", *aliases])

    def _send_now(self, info: Mapping[str, Any], aliases: list[str]) -> None:
        if not self._run.offline and self._uploads_under_way() < _MOST_UPLOADS:
            self._send(info, aliases)

    def _send(self, info: Mapping[str, Any], aliases: list[str]) -> None:
        if self._described.artifacts != "best" or info.get("format", "milepost") != "milepost":
            return  # a state of a foreign format is read by torch alone
        folder = self._staging() / info["filename"]
        try:
            weights, manifest = self._exported(info, folder)
        except (MilepostError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            if os.path.exists(info["path"]):
                self._left_out(f"no weights of {info['filename']} for W&B ({error})", "export it with milepost.export")
            else:
                _log.debug("%s is gone before it was exported", info["path"])
            return
        artifact = self._artifact("model", info, ("step", "epoch", "metrics", "is_best", "pinned", "state_bytes"))
        # Not copied: neither beside the other uploads, nor into W&B's cache.
        artifact.add_file(str(weights), policy="immutable", skip_cache=True)
        artifact.add_file(str(manifest), policy="immutable", skip_cache=True)
        upload = self._run.log_artifact(artifact, aliases=["latest", f"step-{info['step']}", *aliases])
        self._uploads.append((upload, folder))
        self._sent = info["filename"] if "best" in aliases else self._sent

    def _staging(self) -> Path:
        if self._run.offline:
            return Path(self._run.settings.sync_dir) / "artifacts"
        return self._described.folder / _UPLOADING

    def _exported(self, info: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
        from milepost.checkpoint.export import export

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        weights = export(CheckpointInfo.from_fields(info).path, folder / _WEIGHTS, format="safetensors", only="model.*")
        about = {name: value for name, value in info.items() if name not in {"path", "stall_ms", "wait_ms", "base"}}
        run = {"id": self._described.id, "name": self._described.name}
        manifest = folder / "manifest.json"
        size = weights.stat().st_size
        content = {"run": run, "checkpoint": about, "weights": {"file": _WEIGHTS, "bytes": size}}
        manifest.write_bytes(as_json(content, indent=2))
        return weights, manifest

    def _uploads_under_way(self) -> int:
        waiting = []
        for upload, folder in self._uploads:
            try:
                upload.wait(timeout=0)
            except ValueError as error:  # W&B refused it: that is over too
                _log.debug("an artifact was not taken", exc_info=error)
            except self._wandb.Error:  # not done, or W&B cannot be asked now
                waiting.append((upload, folder))
                continue
            shutil.rmtree(folder, ignore_errors=True)
        self._uploads = waiting
        return len(waiting)

    def _artifact(self, kind: str, info: Mapping[str, Any], fields: tuple[str, ...]) -> Any:
        metadata = json.loads(as_json({name: info[name] for name in fields if name in info}))
        return self._wandb.Artifact(f"{self._described.id}-{kind}", type="model", metadata=metadata)


def _best_values(info: Mapping[str, Any]) -> dict[str, Any]:
    return {"best/step": info["step"]} | {f"best/{name}": value for name, value in info.get("metrics", {}).items()}
