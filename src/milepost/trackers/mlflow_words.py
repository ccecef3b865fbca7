"""How is what a run says put into the words that MLflow takes?

Names, parameters and tags have shapes and lengths there; whatever does not fit is changed visibly, never dropped.
Nothing here needs the package ``mlflow``.
"""

from __future__ import annotations

import json
import posixpath
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from milepost.trackers.protocol import RunDescription

__all__ = [
    "LONGEST_NAME",
    "RUN_ID_TAG",
    "Params",
    "accepted_name",
    "note_of",
    "params_of",
    "shortened",
    "status_of",
    "system_metric",
    "tags_of",
]

#: The tag by which the MLflow run of an experiment is found again.
RUN_ID_TAG = "milepost.run_id"

#: Of a run, an experiment, a metric, a parameter, a tag.
LONGEST_NAME = 250
_LONGEST_TAG = 5000  # 8000 in newer servers
_REFUSED = re.compile(r"[^/\w.\- :]")
_STATUS = {"running": "RUNNING", "completed": "FINISHED", "failed": "FAILED", "paused": "SCHEDULED"}
#: What MLflow's own sampler calls the same things, and by what it divides, so that its page of them shows ours.
_SYSTEM = {
    "system/cpu_percent": ("system/cpu_utilization_percentage", 1.0),
    "system/memory_used_bytes": ("system/system_memory_usage_megabytes", 1e6),
}
_OF_A_GPU = re.compile(r"system/gpu(\d+)/(.+)")
_GPU = {
    "utilization_percent": ("utilization_percentage", 1.0),
    "memory_used_bytes": ("memory_usage_megabytes", 1e6),
    "power_watts": ("power_usage_watts", 1.0),
}


def accepted_name(name: str) -> str:
    """``name`` if MLflow takes it; else one that it takes, and that no other name becomes."""
    mapped = posixpath.normpath(_REFUSED.sub("_", name)).lstrip("/")
    mapped = mapped.replace("..", "__")
    if mapped == name and mapped != "." and len(name) <= LONGEST_NAME:
        return name
    mark = f"-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
    return mapped[: LONGEST_NAME - len(mark)] + mark


def shortened(text: str, longest: int = _LONGEST_TAG) -> str:
    """``text``, cut with an ellipsis where it is longer than ``longest`` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The parameters of a run by name, and the names of those that had to be cut."""

    values: dict[str, str] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)


def params_of(run: RunDescription, longest: int) -> Params:
    """Hyperparameters, model and dataset, nested names joined by ``/``, no value longer than ``longest``."""
    tree = dict(run.hyperparameters)
    tree |= {"model_config": run.model_config} if run.model_config else {}
    tree |= {"dataset_info": run.dataset_info} if run.dataset_info else {}
    texts = {accepted_name(name): text for name, text in _flat(tree, "")}
    values = {name: shortened(text, longest) for name, text in texts.items()}
    return Params(values=values, cut=[name for name, text in texts.items() if len(text) > longest])


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat += _flat(value, f"{name}/")
        else:
            flat.append((name, _text(value)))
    return flat


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, tuple, dict)) else str(value)


def tags_of(tags: Sequence[str]) -> dict[str, str]:
    """A tag of ours is a word; MLflow's are pairs. Those that MLflow means something by are kept out of its way."""
    names = [f"tag.{tag}" if tag.startswith(("mlflow.", "milepost.")) else tag for tag in tags]
    return {accepted_name(name): "true" for name in names if name}


def note_of(description: str, notes: str) -> str:
    """What the description field of a run shows there."""
    return shortened("\n\n".join(part for part in (description, notes) if part))


def status_of(status: str) -> str:
    """MLflow's word for the state of a run; whatever was ended from outside is ``KILLED`` there."""
    return _STATUS.get(status, "KILLED")


def system_metric(name: str, value: float) -> tuple[str, float]:
    """A sample under MLflow's own name and in its unit where it has one, else as it is."""
    gpu = _OF_A_GPU.fullmatch(name)
    if gpu is not None and gpu[2] in _GPU:
        theirs, divisor = _GPU[gpu[2]]
        return f"system/gpu_{gpu[1]}_{theirs}", value / divisor
    theirs, divisor = _SYSTEM.get(name, (accepted_name(name), 1.0))
    return theirs, value / divisor
