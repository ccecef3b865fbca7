"""What does a reader bring to the examples of Hugging Face's Trainer? A small BERT, and text of his own.

``python -m tests.docs.run_huggingface BLOCK OUT`` runs ``example_blocks/BLOCK.py`` in the working folder, as printed.
``bert-base-uncased`` is a BERT of a few thousand parameters from a folder on this disk; everything else is real.

``EXAMPLE_KILL``: a step; the training is killed with SIGKILL inside it, when the optimizer has moved.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    TrainingArguments,
)

BLOCKS = Path(__file__).with_name("example_blocks")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(59))]
STEPS_AN_EPOCH = 340


def _put_a_small_bert_in_place_of_the_hub(folder: Path) -> None:
    """Both blocks load it by its name; what is printed stays."""
    if not folder.exists():
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(str(folder))
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(str(folder))
    for loader in (AutoTokenizer, AutoModelForMaskedLM):
        inherited = loader.from_pretrained
        loader.from_pretrained = _local(inherited, folder)


def _local(inherited: Any, folder: Path) -> Any:
    return lambda name, **options: inherited(str(folder) if name == "bert-base-uncased" else name, **options)


def _train_on_the_cpu_without_a_progress_bar() -> None:
    initialise = TrainingArguments.__init__

    def here(self: Any, out: str, **settings: Any) -> None:
        initialise(self, out, use_cpu=True, disable_tqdm=True, **settings)

    TrainingArguments.__init__ = here


def _kill_in_its_step() -> None:
    steps = itertools.count(1)
    wanted = int(os.environ.get("EXAMPLE_KILL", "0"))

    def after_step(*_: Any) -> None:
        if next(steps) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(after_step)


def load(split: str, batch: int = 16) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(len(split))
    count = STEPS_AN_EPOCH * batch if split == "train" else 64
    return [{"input_ids": words.tolist()} for words in torch.randint(5, len(WORDS), (count, 6), generator=generator)]


def run_example(block: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _put_a_small_bert_in_place_of_the_hub(Path.cwd() / "bert-base-uncased")
    _train_on_the_cpu_without_a_progress_bar()
    _kill_in_its_step()
    names: dict[str, Any] = {"__name__": "__main__", "load": load, "AutoModel": AutoModel}
    if block == "huggingface":
        model = AutoModelForMaskedLM.from_pretrained("bert-base-uncased")
        data = [{**sample, "labels": sample["input_ids"]} for sample in load("train", 8)]
        names |= {"model": model, "train_set": data, "val_set": data[:64]}
    path = BLOCKS / f"{block}.py"
    exec(compile(path.read_text(encoding="utf-8"), path, "exec", dont_inherit=True), names)


if __name__ == "__main__":
    chosen = sys.argv.pop(1)
    run_example(chosen)
