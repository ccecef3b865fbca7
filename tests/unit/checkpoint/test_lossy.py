from __future__ import annotations

from typing import Any

import torch
from torch import nn

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.lossy import moments_of
from milepost.checkpoint.snapshot import Stager, outline
from milepost.checkpoint.state import capture
from tests.unit.checkpoint.test_snapshot import read_back


def trained(optimizer_class: Any = torch.optim.AdamW, **settings: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    optimizer = optimizer_class(model.parameters(), lr=1e-3, **settings)
    model(torch.randn(8, 40)).pow(2).mean().backward()
    optimizer.step()
    return model, optimizer


def test_moments_become_bfloat16_and_everything_else_keeps_every_bit() -> None:
    model, optimizer = trained(amsgrad=True)
    state = capture(model, optimizer, extra={"second": torch.optim.SGD(model.parameters(), lr=0.1)})
    arena = Arena()
    staged = Stager().stage(outline(state, lossy="bf16-moments"), arena)
    back = read_back(staged, arena)

    rounded = {entry.name for entry in staged.tensors if entry.original == "float32"}
    assert rounded == {
        f"optimizer.state.{name}.{moment}"
        for name in ("weight", "bias")
        for moment in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    }
    for number, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            expected = value if name == "step" else value.to(torch.bfloat16)
            assert torch.equal(back["optimizer"]["state"][number][name], expected)
    for name, value in state["model"].items():
        assert torch.equal(back["model"][name], value)


def test_a_second_optimizer_in_extra_is_rounded_too() -> None:
    model, _ = trained()
    second = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    second.step()
    state = capture(model, extra={"second": second})

    assert moments_of(state) == {id(second.state[p]["momentum_buffer"]) for p in model.parameters()}


def test_weights_in_the_state_of_an_optimizer_and_scalars_stay_exact() -> None:
    model, optimizer = trained()
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "master": torch.ones_like(parameter),
            "exp_avg": torch.tensor(1.0),
            "exp_avg_sq": torch.ones(3),
            "momentum_buffer": torch.ones_like(parameter, dtype=torch.float64),
        }
    assert moments_of(capture(model, optimizer)) == frozenset()


def test_without_the_setting_nothing_is_rounded() -> None:
    model, optimizer = trained()
    assert all(entry.original is None for entry in outline(capture(model, optimizer)).entries)
