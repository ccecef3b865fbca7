"""How does a training look that can be killed at any moment and started again?

A small transformer learns the text of Python's own manual, byte by byte, on the CPU and offline. ``milepost demo``
copies this file to ``train.py`` and runs it four times; run it yourself, kill it wherever you like, run it again:
it goes on at the next step, in the same run. Everything that makes it so stands in ``main``; the rest is the usual.
"""

from __future__ import annotations

import os
import pydoc_data.topics
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import milepost


@dataclass(frozen=True)
class Hyperparameters:
    """What the result depends on; ``resume="auto"`` finds the killed run by its name and these."""

    epochs: int = 2
    batch_size: int = 16
    context: int = 64
    width: int = 128
    heads: int = 4
    layers: int = 2
    dropout: float = 0.1
    learning_rate: float = 4e-3
    warmup_steps: int = 20
    seed: int = 7


class LanguageModel(nn.Module):
    """Predicts the next byte of a text.

    Args:
        hp: ``width``, ``heads``, ``layers``, ``context`` and ``dropout`` are used.
    """

    def __init__(self, hp: Hyperparameters) -> None:
        super().__init__()
        self.token = nn.Embedding(256, hp.width)
        self.place = nn.Embedding(hp.context, hp.width)
        layer = nn.TransformerEncoderLayer(
            hp.width, hp.heads, 4 * hp.width, hp.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, hp.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(hp.width)
        for embedding in (self.token, self.place):  # the first is also the output layer: large weights would drown it
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(batch, length, 256)`` for tokens ``(batch, length)`` of dtype int64."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.token(tokens) + self.place.weight[:length]
        hidden = self.norm(self.blocks(hidden, mask=mask, is_causal=True))
        return functional.linear(hidden, self.token.weight)


class Batches:
    """Windows of a text in another order in each epoch; knows its place, so a resumed training goes on inside it.

    ``torchdata.stateful_dataloader.StatefulDataLoader`` does the same for any dataset, with worker processes.

    Args:
        text: Tokens ``(length,)`` of dtype int64.
        hp: ``batch_size``, ``context`` and ``seed`` are used.
    """

    def __init__(self, text: Tensor, hp: Hyperparameters) -> None:
        self.windows = text.unfold(0, hp.context + 1, hp.context)
        self.batch_size, self.seed = hp.batch_size, hp.seed
        self.epoch, self.position, self.resumed = -1, 0, False

    def __len__(self) -> int:
        return len(self.windows) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        if not self.resumed:
            self.epoch, self.position = self.epoch + 1, 0
        self.resumed = False
        order = torch.randperm(len(self.windows), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            yield self.windows[order[start : start + self.batch_size]]

    def state_dict(self) -> dict[str, int]:
        """The place: which epoch, and how many of its batches were handed out."""
        accident("save", self.epoch * len(self) + self.position - 1)
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batch that ``state`` was taken at."""
        self.epoch, self.position, self.resumed = state["epoch"], state["position"], True


def accident(moment: str, step: int) -> None:
    """Kill this process where the demo asks for it; a training of your own needs nothing like it."""
    asked, _, earliest = os.environ.get("DEMO_ACCIDENT", "").partition(" ")
    if asked == moment and step >= int(earliest):
        os.kill(os.getpid(), signal.SIGKILL)


def loss_of(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy in nats per byte, a 0-d tensor, for windows ``(batch, context + 1)``."""
    logits: Tensor = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    windows: Tensor,
) -> dict[str, float]:
    """One step down; returns its metrics."""
    loss = loss_of(model, windows)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    rate = scheduler.get_last_lr()[0]
    optimizer.step()
    scheduler.step()
    return {"train/loss": loss.item(), "train/grad_norm": norm.item(), "learning_rate": float(rate)}


@torch.no_grad()
def evaluate(model: nn.Module, windows: Tensor) -> dict[str, float]:
    """Loss on text that the model is never trained on."""
    model.eval()
    loss = loss_of(model, windows).item()
    model.train()
    return {"val/loss": loss}


def read_manual() -> tuple[Tensor, Tensor]:
    """The language reference as bytes: the first nine tenths to train on, the rest to validate on."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    tokens = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)[:120_000].long()
    split = len(tokens) * 9 // 10
    return tokens[:split], tokens[split:]


def main() -> None:
    """Train, and go on where an earlier attempt was killed."""
    hp = Hyperparameters()
    torch.manual_seed(hp.seed)
    torch.use_deterministic_algorithms(mode=True)  # else two trainings that nobody killed would differ, too
    torch.set_num_threads(1)  # so small a model is not faster with more, and they would wait for each other
    train_text, validation_text = read_manual()
    validation = validation_text.unfold(0, hp.context + 1, hp.context)[:64]
    loader = Batches(train_text, hp)
    total = hp.epochs * len(loader)

    model = LanguageModel(hp)
    optimizer = torch.optim.AdamW(model.parameters(), lr=hp.learning_rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, hp.learning_rate, total, pct_start=hp.warmup_steps / total
    )

    with milepost.start(
        "python-manual-lm",
        hyperparameters=asdict(hp),
        resume="auto",
        save_frequency=25,
        max_checkpoints=3,
        best_metric="val/loss",
    ) as run:
        at = run.resume(model, optimizer, scheduler, loader=loader)
        step = at.step
        print("starts at step 0" if at.fresh else f"goes on at step {step}", flush=True)
        for epoch in range(at.epoch, hp.epochs):
            for windows in loader:
                metrics = train_step(model, optimizer, scheduler, windows)
                run.log(metrics, step, epoch=epoch)
                if run.should_save(step):
                    validated = evaluate(model, validation)
                    run.log(validated, step, epoch=epoch)
                    run.save_checkpoint(step=step, epoch=epoch, metrics=validated)
                print(f"step {step + 1}/{total}  train/loss {metrics['train/loss']:.4f}", flush=True)
                accident("step", step)
                step += 1


if __name__ == "__main__":
    main()
