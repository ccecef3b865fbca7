"""A run over a plain DataLoader, stopped inside an epoch and started again, goes on as one that was not stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import milepost
from milepost.checkpoint.catalog import scan

STEPS = 10


def train(root: Path, seed: int, stop_after: int | None = None) -> tuple[milepost.ResumePoint, dict[int, float]]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.arange(10.0)[:, None]), batch_size=2, shuffle=True)
    losses: dict[int, float] = {}
    with milepost.start("plain", resume="auto", root=root, save_frequency=3, tensorboard_dir=None) as run:
        at = run.resume(model, optimizer, loader=loader)
        step = at.step
        for epoch in range(at.epoch, 2):
            for (batch,) in loader:
                optimizer.zero_grad()
                loss = model(batch).square().mean()
                loss.backward()
                optimizer.step()
                losses[step] = loss.item()
                if run.should_save(step):
                    run.save_checkpoint(step=step, epoch=epoch)
                if step == stop_after:
                    run.end(status="stopped")
                    return at, losses
                step += 1
    return at, losses


@pytest.mark.parametrize("stop_after", [4, 7])
def test_a_run_goes_on_inside_its_epoch(tmp_path: Path, stop_after: int) -> None:
    _, wanted = train(tmp_path / "one", seed=1)
    train(tmp_path / "two", seed=1, stop_after=stop_after)

    at, losses = train(tmp_path / "two", seed=2)

    assert not at.fresh
    assert at.notes == ()
    assert losses == {step: loss for step, loss in wanted.items() if step >= at.step}
    assert len(wanted) == STEPS


def test_gradients_used_by_the_last_step_are_in_no_checkpoint_of_a_run(tmp_path: Path) -> None:
    train(tmp_path, seed=1)

    infos = scan(tmp_path / "checkpoints").infos

    assert infos
    assert not [info.filename for info in infos if "gradients" in info.contents]
