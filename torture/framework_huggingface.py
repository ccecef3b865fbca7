"""How does a training of Hugging Face's Trainer look to the sweep over system calls?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from milepost.integrations.huggingface import MilepostCallback, MilepostTrainerMixin, newest_checkpoint

__all__ = ["train"]

_transformers: Any = import_module("transformers")  # takes a type checker minutes to read
_tiny: Any = import_module("tests.contract.huggingface_training")
_last: Any = import_module("transformers.trainer_utils").get_last_checkpoint


def train(gate: Callable[[str], None], *, fast: bool = False, alone: bool = False) -> None:
    """Train to the end from the newest whole folder; ``alone``: from the last one, as Trainer itself finds it."""

    class Gated(_transformers.Trainer):  # type: ignore[misc]  # its types are not looked at
        def _maybe_log_save_evaluate(self, *given: Any, **named: Any) -> None:
            saves = self.control.should_save
            if saves:
                gate("begin")
            super()._maybe_log_save_evaluate(*given, **named)
            if saves:
                gate("end")

    torch.set_num_threads(1)
    _transformers.set_seed(1)
    trainer_class: Any = type("Fast", (MilepostTrainerMixin, Gated), {}) if fast else Gated
    args = _transformers.TrainingArguments(
        "out",
        max_steps=9,
        save_steps=3,
        save_total_limit=1,
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    tracking = MilepostCallback(
        name="sweep", resume="auto", tensorboard_dir=None, capture_code=False, capture_console=False
    )
    callbacks = [] if alone else [tracking]
    trainer = trainer_class(_tiny.tiny_model(), args, train_dataset=_tiny.samples(), callbacks=callbacks)
    newest = _last("out") if alone and Path("out").is_dir() else newest_checkpoint("out")
    if newest is not None and not alone:
        _transformers.BertForSequenceClassification.from_pretrained(newest)
    trainer.train(resume_from_checkpoint=newest)
    losses = {str(entry["step"]): entry["loss"].hex() for entry in trainer.state.log_history if "loss" in entry}
    Path("losses.json").write_text(json.dumps(losses))
    if tracking.run is not None:
        tracking.run.end()
