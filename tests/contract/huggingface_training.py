"""A small training with Hugging Face's Trainer, for tests that kill it: ``python huggingface_training.py OUT [...]``.

What it logged is kept beside OUT in ``history.json``, as Trainer has it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from milepost.integrations import huggingface

WORDS, LENGTH, SAMPLES = 64, 8, 64


def tiny_model() -> BertForSequenceClassification:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **sizes))


def samples() -> list[dict[str, torch.Tensor]]:
    words = torch.randint(0, WORDS, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": sentence, "labels": (sentence.sum() % 2)} for sentence in words]


class Accident(TrainerCallback):
    """Sends this process a signal at the end of a step, before Trainer logs it."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def train(
    out: str, *, steps: int, save: int = 4, fast: bool = False, kill: int = 0, usr1: int = 0, **settings: Any
) -> Trainer:
    torch.set_num_threads(1)
    set_seed(1)
    data = samples()
    args = TrainingArguments(
        out,
        max_steps=steps,
        save_steps=save,
        logging_steps=1,
        per_device_train_batch_size=4,
        eval_strategy="steps",
        eval_steps=save,
        metric_for_best_model="eval_loss",
        load_best_model_at_end=True,
        save_total_limit=settings.pop("limit", 2),
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    tracking = huggingface.MilepostCallback(
        name="bert-lr{learning_rate}", resume="auto", save_on_signal=("SIGUSR1",), tensorboard_dir=None, **settings
    )
    accidents = [Accident(kill, signal.SIGKILL)] * bool(kill) + [Accident(usr1, signal.SIGUSR1)] * bool(usr1)
    trainer_class: Any = Trainer
    if fast:
        trainer_class = type("FastTrainer", (huggingface.MilepostTrainerMixin, Trainer), {})
    trainer = trainer_class(
        tiny_model(), args, train_dataset=data, eval_dataset=data[:16], callbacks=[tracking, *accidents]
    )
    trainer.train(resume_from_checkpoint=huggingface.newest_checkpoint(out))
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save", type=int, default=4)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--usr1", type=int, default=0)
    given = parser.parse_args()
    trainer = train(**vars(given))
    if trainer.is_world_process_zero():
        (Path(given.out).parent / "history.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
