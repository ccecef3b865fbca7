"""What happens to a person who runs the mission's code blocks? ``python -m tests.docs.run_mission IMPORT_NAME``.

Runs them in their order in one script, in the working folder, and prints what they left as the last line, in JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Optional

BLOCKS = Path(__file__).with_name("mission_blocks")


def run_mission(import_name: str) -> dict[str, Any]:
    names = _prepared_names()
    for block in ("01_setup", "02_basic_experiment_tracking"):
        _run(block, import_name, names)
    # The next two blocks are about a training that is under way.
    first = names["experiment_id"]
    names["experiment_id"] = names["tracking_system"].start_experiment("checkpoint management")
    for block in ("03_checkpoint_management", "04_advanced_integration"):
        _run(block, import_name, names)
    names["tracking_system"].end_experiment()
    for block in ("05_experiment_config", "06_debug_mode"):
        _run(block, import_name, names)
    return {
        "first": first,
        "second": names["experiment_id"],
        "checkpoint_info_step": names["checkpoint_info"]["step"],
        "listed": [str(checkpoint["filename"]) for checkpoint in names["checkpoints"]],
        "best_step": names["best_checkpoint"]["step"],
    }


def _prepared_names() -> dict[str, Any]:
    """What stands in the reader's own script: a small model after its first backward pass, and today's numbers."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    return {
        "__name__": "__main__",
        "torch": torch,
        "dataclass": dataclasses.dataclass,
        "Optional": Optional,
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10),
        "current_loss": 0.5,
        "current_accuracy": 0.75,
        "current_lr": 2e-5,
        "final_loss": 0.25,
        "final_accuracy": 0.875,
        "epoch": 1,
        "metrics": {"loss": 0.25},
        "is_best_model": True,
        "custom_value": 3,
    }


def _run(block: str, import_name: str, names: dict[str, Any]) -> None:
    path = BLOCKS / f"{block}.py"
    code = path.read_text(encoding="utf-8").replace("experiment_tracking_checkpointing_system", import_name)
    # Inheriting this file's flags would turn the annotations of the dataclass block into strings.
    exec(compile(code, path, "exec", dont_inherit=True), names)


if __name__ == "__main__":
    print(json.dumps(run_mission(sys.argv[1])))
