"""Gradients belong to the state inside an accumulation, and only there."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.gradients import GradientWatch, capture_gradients, restore_gradients
from milepost.checkpoint.state import state_of


def build(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, **settings)


def backward(model: nn.Module, number: int) -> None:
    inputs = torch.arange(3.0) + number
    model(inputs).square().sum().backward()


def watched(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, GradientWatch]:
    model, optimizer = build(**settings)
    watch = GradientWatch()
    watch.watch(optimizer)
    watch.watch(optimizer)
    return model, optimizer, watch


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Micro-batches ``first`` to ``last``, four to a step."""
    for number in range(first, last):
        backward(model, number)
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("stop", [2, 5, 7, 8])
def test_an_accumulation_that_was_interrupted_goes_on_bit_for_bit(stop: int) -> None:
    model, optimizer, watch = watched()
    train(model, optimizer, 0, stop)
    saved = copy.deepcopy(state_of(TrainingObjects(model=model, optimizer=optimizer), gradients=watch))
    train(model, optimizer, stop, 12)

    other, other_optimizer = build()
    other.load_state_dict(saved["model"])
    other_optimizer.load_state_dict(saved["optimizer"])
    restore_gradients(other, saved.get("gradients", {}))
    train(other, other_optimizer, stop, 12)

    assert ("gradients" in saved) == (stop % 4 != 0)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loop_that_saves_between_step_and_zero_grad_saves_no_gradients(set_to_none: bool) -> None:
    model, optimizer, watch = watched()
    for number in range(3):
        backward(model, number)
        assert len(watch.held(model)) == 4
        optimizer.step()
        assert watch.held(model) == {}
        optimizer.zero_grad(set_to_none=set_to_none)
        assert watch.held(model) == {}


def test_before_the_first_step_that_was_seen_gradients_are_kept_unless_all_are_zero() -> None:
    model, optimizer = build()
    backward(model, 1)
    optimizer.step()
    watch = GradientWatch()
    watch.watch(optimizer)

    assert len(watch.held(model)) == 4
    optimizer.zero_grad(set_to_none=False)
    assert watch.held(model) == {}


def test_a_zero_gradient_among_others_is_kept() -> None:
    model, _, watch = watched()
    backward(model, 1)
    model[0].weight.grad.zero_()

    assert "0.weight" in watch.held(model)


def test_the_gradients_of_one_optimizer_are_not_those_of_another() -> None:
    model = nn.ModuleDict({"one": nn.Linear(2, 1), "two": nn.Linear(2, 1)})
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.1) for name, module in model.items()}
    watch = GradientWatch()
    watch.follow(TrainingObjects(model=model, optimizer=optimizers["one"], extra={"two": optimizers["two"], "n": 1}))
    for module in model.values():
        module(torch.ones(2)).sum().backward()
    optimizers["one"].step()

    assert set(watch.held(model)) == {"two.weight", "two.bias"}


def test_parameters_beside_the_model_are_looked_at_too() -> None:
    model, optimizer, watch = watched()
    free = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [free]})
    extra = {"head": nn.Linear(2, 1)}
    objects = TrainingObjects(model=model, optimizer=optimizer, extra=extra)
    (free.sum() + extra["head"](torch.ones(2)).sum()).backward()

    saved = copy.deepcopy(state_of(objects, gradients=watch)["gradients"])

    assert set(saved) == {"optimizer.param_groups[1].params[0]", "extra.head.weight", "extra.head.bias"}


def test_a_tied_weight_has_one_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    backward(model, 1)

    held = GradientWatch().held(model)

    assert set(held) == {"0.weight", "0.bias", "1.bias"}


def test_sparse_gradients_come_back_as_they_were() -> None:
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1))
    for index in (1, 1, 3):
        model(torch.tensor([index])).sum().backward()
    saved = copy.deepcopy(capture_gradients(GradientWatch().held(model)))
    other = copy.deepcopy(model)
    other.zero_grad()

    restore_gradients(other, saved)

    for module in (model, other):
        module(torch.tensor([1])).sum().backward()
    assert other[0].weight.grad.is_sparse
    assert torch.equal(other[0].weight.grad.to_dense(), model[0].weight.grad.to_dense())
    assert torch.equal(other[1].weight.grad, model[1].weight.grad)


def test_gradients_are_put_back_in_place_where_there_are_some() -> None:
    model, _ = build()
    backward(model, 1)
    saved = copy.deepcopy(capture_gradients(GradientWatch().held(model)))
    del saved["2.bias"]
    backward(model, 2)
    before = model[0].weight.grad

    restore_gradients(model, saved)

    assert model[0].weight.grad is before
    assert torch.equal(before, saved["0.weight"])
    assert model[2].bias.grad is None  # it had none inside the accumulation


def test_nothing_saved_changes_nothing() -> None:
    model, _ = build()
    backward(model, 1)
    wanted = model[0].weight.grad.clone()

    restore_gradients(model, {})

    assert torch.equal(model[0].weight.grad, wanted)


def test_parameters_that_stop_having_gradients_do_not_hide_those_of_others() -> None:
    model, optimizer, watch = watched()
    backward(model, 1)
    optimizer.step()
    optimizer.zero_grad()
    model[0].requires_grad_(requires_grad=False)
    backward(model, 2)
    optimizer.step()

    assert watch.held(model) == {}
    backward(model, 3)
    assert set(watch.held(model)) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_every_implementation_of_a_step_is_seen(settings: dict[str, Any]) -> None:
    model, optimizer, watch = watched(**settings)
    backward(model, 1)
    optimizer.step()

    assert watch.held(model) == {}


def test_a_step_with_a_closure_is_seen() -> None:
    model, _ = build()
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=2)
    watch = GradientWatch()
    watch.watch(lbfgs)

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss = model(torch.ones(3)).square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)

    assert watch.held(model) == {}


def test_a_copy_of_a_watched_optimizer_steps_without_being_watched() -> None:
    model, optimizer, watch = watched()
    other = copy.deepcopy(optimizer)
    backward(model, 1)

    other.step()

    assert len(watch.held(model)) == 4


def test_an_optimizer_of_another_kind_is_not_watched() -> None:
    watch = GradientWatch()
    watch.watch(None)
    watch.watch("optimizer")
    model, _ = build()
    backward(model, 1)

    assert len(watch.held(model)) == 4


def test_neither_gradients_nor_optimizers_are_kept_alive() -> None:
    model, optimizer, watch = watched()
    backward(model, 1)
    optimizer.step()
    optimizer.zero_grad()
    optimizer_seen = weakref.ref(optimizer)
    del optimizer
    gc.collect()

    assert optimizer_seen() is None
    assert watch.held(model) == {}
