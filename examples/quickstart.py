"""A training that can be killed: run it, kill it anywhere (Ctrl-C, kill -9, a closed laptop), run it again.

    pip install "milepost[torch]" torchdata
    python quickstart.py

It goes on at the next step, in the same run, and its losses are those of a training that nobody killed. Afterwards:

    milepost runs
    milepost show python-manual
"""

import pydoc_data.topics

import torch
from torch import nn
from torch.nn import functional
from torchdata.stateful_dataloader import StatefulDataLoader

import milepost

hp = {"epochs": 6, "batch_size": 64, "context": 16, "width": 64, "dropout": 0.1, "learning_rate": 2e-3, "seed": 0}


def build():
    """A network that guesses the next byte from the ``context`` bytes before it."""
    wide = hp["context"] * hp["width"]
    model = nn.Sequential(
        nn.Embedding(256, hp["width"]),
        nn.Flatten(),
        nn.Linear(wide, 256),
        nn.GELU(),
        nn.Dropout(hp["dropout"]),
        nn.Linear(256, 256),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=hp["learning_rate"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=200, gamma=0.7)
    return model, optimizer, scheduler


def windows():
    """Pieces of ``context + 1`` bytes of Python's own manual: a text that is there without a download."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode()[:200_000]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long().unfold(0, hp["context"] + 1, 8)


def train_step(model, optimizer, scheduler, batch):
    loss = functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    return loss.detach()


torch.manual_seed(hp["seed"])
model, optimizer, scheduler = build()
# A loader with a state: a plain DataLoader would begin its epoch anew after a kill, and milepost would say so.
loader = StatefulDataLoader(windows(), batch_size=hp["batch_size"], shuffle=True)

# resume="auto": a run of this name with these hyperparameters that did not complete goes on, else a new one begins.
with milepost.start("python-manual", hyperparameters=hp, resume="auto", save_frequency=100) as run:
    at = run.resume(model, optimizer, scheduler, loader=loader)
    step = at.step
    print(f"starts at step {step}")
    for epoch in range(at.epoch, hp["epochs"]):
        for batch in loader:
            loss = train_step(model, optimizer, scheduler, batch)
            run.log({"train/loss": loss}, step, epoch=epoch)
            if run.should_save(step):
                run.save_checkpoint(
                    step=step, epoch=epoch
                )  # of all that resume() was given; written by another process
            if step % 100 == 0:
                print(f"step {step}  train/loss {loss:.4f}")
            step += 1
