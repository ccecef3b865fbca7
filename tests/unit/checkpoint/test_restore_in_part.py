"""What fits is taken where that is asked for, and every difference is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.loading import StoredState, open_state
from milepost.checkpoint.restore import restore, restore_stored
from milepost.core.config import ExperimentConfig
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.encoder(inputs))


def trained(classes: int = 3) -> tuple[Net, torch.optim.Optimizer]:
    model = Net(classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def checkpointer(folder: Path) -> ModelCheckpointer:
    return ModelCheckpointer(ExperimentConfig(root=str(folder), compression=False))


def saved(folder: Path, model: nn.Module, optimizer: Any = None, **more: Any) -> Path:
    saver = checkpointer(folder)
    path = saver.save_checkpoint(model, optimizer, step=3, **more)
    saver.wait()
    return Path(str(path))


def test_a_pattern_restores_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = saved(tmp_path, model, optimizer)
    other, other_optimizer = trained()
    head = other.head.weight.detach().clone()
    moments = {id(p): other_optimizer.state[p]["exp_avg"].clone() for p in other.parameters()}
    other_optimizer.param_groups[0]["lr"] = 0.125
    patterns = ["model.encoder.*", "optimizer.state.encoder.0.*"]

    report = checkpointer(tmp_path).load_checkpoint(path, other, other_optimizer, only=patterns)

    assert report.missing == report.unexpected == ()
    assert torch.equal(other.encoder[1].weight, model.encoder[1].weight)
    assert torch.equal(other.head.weight, head)
    first, last = other.encoder[0].weight, other.head.weight
    assert torch.equal(other_optimizer.state[first]["exp_avg"], optimizer.state[model.encoder[0].weight]["exp_avg"])
    assert torch.equal(other_optimizer.state[last]["exp_avg"], moments[id(last)])
    assert other_optimizer.param_groups[0]["lr"] == 0.125


def test_a_pattern_that_names_nothing_is_refused(tmp_path: Path) -> None:
    model, _ = trained()
    path = saved(tmp_path, model)

    with pytest.raises(NotFoundError, match=r"called decoder\.\*"):
        checkpointer(tmp_path).load_checkpoint(path, model, only="decoder.*")


def test_every_difference_is_counted_and_three_of_a_kind_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, nn.ModuleDict({f"layer{index}": nn.Linear(2, 2) for index in range(4)}))
    model = nn.ModuleDict({f"layer{index}": nn.Linear(3, 3) for index in range(3)} | {"more": nn.Linear(1, 1)})

    with pytest.raises(InvalidInputError) as caught:
        checkpointer(tmp_path).load_checkpoint(path, model)

    told = str(caught.value)
    assert "2 missing (more.weight, more.bias)" in told
    assert "2 unexpected (layer3.weight, layer3.bias)" in told
    assert "6 of another shape (model.layer0.weight has shape (3, 3), the checkpoint (2, 2), " in told
    assert "layer1.bias" not in told


def test_another_head_stays_as_it_is_when_not_strict(tmp_path: Path) -> None:
    model, optimizer = trained()
    path = saved(tmp_path, model, optimizer)
    other, other_optimizer = trained(classes=7)
    head = other.head.weight.detach().clone()
    moment = other_optimizer.state[other.head.weight]["exp_avg"].clone()

    report = checkpointer(tmp_path).load_checkpoint(path, other, other_optimizer, strict=False)

    assert torch.equal(other.encoder[0].weight, model.encoder[0].weight)
    assert torch.equal(other.head.weight, head)
    assert torch.equal(other_optimizer.state[other.head.weight]["exp_avg"], moment)
    assert report.notes[0].startswith("of another shape, left as it is: model.head.weight")
    assert report.notes[-1] == "and 1 more tensors have another shape and stay as they are"


def test_another_dtype_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path, nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))))
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))).double()

    notes = checkpointer(tmp_path).load_checkpoint(path, model).notes

    assert notes[0] == "model.0.weight was saved as torch.float32 and became torch.float64"
    assert notes[3] == "and 3 more tensors changed their dtype"


def test_a_model_without_memory_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model, _ = trained()
    path = saved(tmp_path, model)
    with torch.device("meta"):
        empty = Net()

    with pytest.raises(InvalidInputError, match="has no memory"):
        checkpointer(tmp_path).load_checkpoint(path, empty)


def test_a_second_name_of_a_tied_weight_need_not_be_in_the_file(tmp_path: Path) -> None:
    model = Net()
    path = saved(tmp_path, model)
    tied = Net()
    tied.decoder = nn.Linear(4, 4)
    tied.decoder.weight, tied.decoder.bias = tied.encoder[0].weight, tied.encoder[0].bias

    report = checkpointer(tmp_path).load_checkpoint(path, tied)

    assert report.missing == ()
    assert torch.equal(tied.decoder.weight, model.encoder[0].weight)


def stored_without_frozen(stored: StoredState) -> StoredState:
    state = stored.state | {"model": {k: v for k, v in stored.state["model"].items() if not k.startswith("encoder.")}}
    return replace(stored, info=replace(stored.info, include="trainable"), state=state)


def test_frozen_names_may_be_missing_in_a_checkpoint_of_what_is_trainable(tmp_path: Path) -> None:
    model = Net()
    model.encoder.requires_grad_(requires_grad=False)
    path = saved(tmp_path, model)
    other = Net()

    with open_state(path) as stored:
        restored = restore_stored(stored_without_frozen(stored), TrainingObjects(model=other))

    assert restored.missing == ()
    assert restored.notes == ("4 frozen parameters were not saved and stay as they are",)
    assert torch.equal(other.head.weight, model.head.weight)


def test_damage_found_while_reading_says_that_a_part_is_loaded_and_leaves_the_plain_values(tmp_path: Path) -> None:
    model = nn.Linear(600, 600)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    path = saved(tmp_path, model, optimizer, scheduler=scheduler)
    content = bytearray(path.read_bytes())
    content[4096 + 600 * 600 * 2] ^= 1
    path.write_bytes(content)
    scheduler.last_epoch = 77
    optimizer.param_groups[0]["lr"] = 0.125

    with pytest.raises(CorruptDataError, match=r"model\.weight.*now hold a part of it"):
        checkpointer(tmp_path).load_checkpoint(path, model, optimizer, scheduler)

    assert scheduler.last_epoch == 77
    assert optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("there", [True, False])
def test_gradients_inside_an_accumulation_come_back_with_the_optimizer(tmp_path: Path, there: bool) -> None:
    model, optimizer = trained()
    optimizer.zero_grad()
    model(torch.randn(2, 4)).sum().backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    with open_state(saved(tmp_path, model, optimizer)) as stored:
        state = stored.read(stored.state)
    state["gradients"] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    other, other_optimizer = trained()
    other_optimizer.zero_grad(set_to_none=not there)

    restore(state, TrainingObjects(model=other, optimizer=other_optimizer))

    for parameter, gradient in zip(other.parameters(), wanted, strict=True):
        assert torch.equal(parameter.grad, gradient)
