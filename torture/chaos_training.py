r"""Does a training that saves with milepost survive ``ckpt-chaos``, a public crash test for training scripts?

    pip install ckpt-chaos
    ckpt-chaos run --checkpoint-glob "{out}/checkpoint_*.milepost" --ckpt-ignore-size \
        --step-regex "resumed from step (\d+)" --result-file "{out}/final.json" \
        --modes before,torn,term,unsynced --max-points 1000 \
        --fail-on HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL -- python torture/chaos_training.py {out}

It kills the script at every file event below ``{out}``, runs it again, and compares step and weights with an
uninterrupted run. Two things are for its sake: names hold no time, so that two runs make the same files, and nothing is
let go, because it tracks only what stays. Saves are written by a thread of this process, which is all that it can kill.

Its list of events are Python's audit events. The rename that gives a checkpoint its name is a system call that Python
does not know, so this script announces it: else the most interesting moment of a save would be none of its kill points.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import milepost
from milepost.checkpoint import commit

_STEPS, _SAVE_EVERY = 12, 4


def main(out: Path) -> None:
    """Train from where the newest checkpoint is to the end; the weights' digest is the result."""
    _announce_renames()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = milepost.ExperimentConfig(checkpoint_dir=str(out), max_checkpoints=1000)
    checkpointer = milepost.ModelCheckpointer(config, stamp="run")
    data = torch.Generator().manual_seed(1)
    extra = {"data": data}
    done = 0
    if checkpointer.list_checkpoints():
        done = checkpointer.load_checkpoint("latest", model, optimizer, extra=extra, fallback=True).step
    print(f"resumed from step {done}", flush=True)
    for step in range(done + 1, _STEPS + 1):
        loss = model(torch.randn(16, 256, generator=data)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % _SAVE_EVERY == 0:
            checkpointer.save_checkpoint(model, optimizer, step=step, extra=extra)
            checkpointer.wait()  # so that the same number is the same event in every run
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    temporary = out / "final.tmp"
    temporary.write_text(json.dumps({"weights": digest}))
    os.replace(temporary, out / "final.json")


def _announce_renames() -> None:
    module: Any = commit
    rename = module.rename_without_replacing

    def announced(source: str, target: str) -> None:
        sys.audit("os.rename", source, target, -1, -1)
        rename(source, target)

    module.rename_without_replacing = announced


if __name__ == "__main__":
    main(Path(sys.argv[1]))
