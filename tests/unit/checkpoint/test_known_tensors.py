"""A second look at a state gives what a first one would, whatever was done to its tensors in between."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.known_tensors import KnownTensors
from milepost.checkpoint.snapshot import Outline, outline
from milepost.checkpoint.state import state_of
from milepost.core.errors import InvalidInputError


def training() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(3, 6)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def seen(model: nn.Sequential, optimizer: Any, known: KnownTensors | None) -> Outline | str:
    state = state_of(TrainingObjects(model=model, optimizer=optimizer))
    del state["rng"]  # another one at each look
    try:
        return outline(state, known=known)
    except InvalidInputError as error:
        return str(error)


def assert_as_at_first_sight(model: nn.Sequential, optimizer: Any, known: KnownTensors) -> Outline | str:
    again, fresh = seen(model, optimizer, known), seen(model, optimizer, None)
    if isinstance(again, str) or isinstance(fresh, str):
        assert again == fresh
        return again
    assert (again.tree, again.entries, again.pieces) == (fresh.tree, fresh.entries, fresh.pieces)
    assert all(map(torch.equal, again.tensors, fresh.tensors))
    if not first_weight(model).is_neg():  # made positive for each look, elsewhere in memory
        assert again.signature == fresh.signature
        assert [t.data_ptr() for t in again.tensors] == [t.data_ptr() for t in fresh.tensors]
    assert [(t.shape, t.stride(), t.dtype) for t in again.tensors] == [
        (t.shape, t.stride(), t.dtype) for t in fresh.tensors
    ]
    return again


def first_weight(model: nn.Sequential) -> nn.Parameter:
    weight = model[0].weight
    assert isinstance(weight, nn.Parameter)
    return weight


def replaced(model: nn.Sequential, _: Any) -> None:
    model[0].weight = nn.Parameter(torch.randn(4, 6))


def other_memory(model: nn.Sequential, _: Any) -> None:
    first_weight(model).data = torch.randn(4, 6)


def other_dtype(model: nn.Sequential, _: Any) -> None:
    model.half()


def other_strides(model: nn.Sequential, _: Any) -> None:
    weight = model[2].weight
    weight.data = weight.data.t()


def other_shape_of_the_same_memory(model: nn.Sequential, _: Any) -> None:
    weight = first_weight(model)
    weight.data = weight.data.view(6, 4)


def part_of_the_same_memory(model: nn.Sequential, _: Any) -> None:
    weight = first_weight(model)
    weight.data = weight.data[1:]


def transposed_in_place(model: nn.Sequential, _: Any) -> None:
    first_weight(model).data.t_()
    with torch.no_grad():
        first_weight(model).t_()


def freed(model: nn.Sequential, _: Any) -> None:
    first_weight(model).untyped_storage().resize_(0)


def longer_storage(model: nn.Sequential, _: Any) -> None:
    first_weight(model).untyped_storage().resize_(4096)


def negated_view(model: nn.Sequential, _: Any) -> None:
    pairs = torch.randn(4, 6, dtype=torch.complex64)
    first_weight(model).data = pairs.conj().imag


def swapped_for_a_sparse_one(model: nn.Sequential, _: Any) -> None:
    buffer = model[1].running_mean
    assert isinstance(buffer, Tensor)
    torch.utils.swap_tensors(buffer, torch.eye(4).to_sparse())


def swapped_for_a_dense_one(model: nn.Sequential, _: Any) -> None:
    torch.utils.swap_tensors(model[1].running_mean, torch.randn(4))


def partitioned(model: nn.Sequential, _: Any) -> None:
    vars(first_weight(model))["ds_tensor"] = torch.zeros(1)


def another_class(model: nn.Sequential, _: Any) -> None:
    class Odd(nn.Parameter):
        pass

    first_weight(model).__class__ = Odd
    vars(first_weight(model))["scales"] = torch.zeros(1)


def tied(model: nn.Sequential, _: Any) -> None:
    model.add_module("tied", model[2])


def untied_again(model: nn.Sequential, _: Any) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach())  # another object, the same memory


def renamed(model: nn.Sequential, _: Any) -> None:
    layer = model[2]
    del model[2]
    model.add_module("head", layer)


def new_group(_: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(3))], "lr": 0.5})


def other_rate(_: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.25


def loaded(_: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def new_entry(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state[first_weight(model)]["max_exp_avg_sq"] = torch.ones(4, 6)


def entry_replaced(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state[first_weight(model)]["exp_avg"] = torch.ones(4, 6)


def entry_gone(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    del optimizer.state[first_weight(model)]


def meta_device(model: nn.Sequential, _: Any) -> None:
    model[1].running_var = torch.empty(4, device="meta")


CHANGES: list[Callable[[Any, Any], None]] = [
    *(replaced, other_memory, other_dtype, other_strides, other_shape_of_the_same_memory, part_of_the_same_memory),
    *(transposed_in_place, freed, longer_storage, negated_view, swapped_for_a_sparse_one, swapped_for_a_dense_one),
    *(partitioned, another_class, tied, untied_again, renamed, new_group, other_rate, loaded, new_entry),
    *(entry_replaced, entry_gone, meta_device),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_was_changed_since_the_last_save_is_seen(change: Callable[[Any, Any], None]) -> None:
    model, optimizer = training()
    known = KnownTensors()
    assert_as_at_first_sight(model, optimizer, known)
    change(model, optimizer)
    assert_as_at_first_sight(model, optimizer, known)
    assert_as_at_first_sight(model, optimizer, known)


def test_what_is_as_it_was_is_not_found_out_again() -> None:
    model, optimizer = training()
    known = KnownTensors()
    before = assert_as_at_first_sight(model, optimizer, known)
    optimizer.step()
    after = assert_as_at_first_sight(model, optimizer, known)
    assert isinstance(before, Outline)
    assert isinstance(after, Outline)
    assert all(new is old for new, old in zip(after.signature, before.signature, strict=True))


def test_a_tensor_that_gets_the_number_of_one_that_is_gone_is_another_one() -> None:
    known = KnownTensors()
    for length in range(1, 200):
        state = {"model": {"weight": torch.zeros(length % 7 + 1)}}
        assert outline(state, known=known).entries == outline(state).entries


def test_nothing_is_kept_alive_for_the_next_save() -> None:
    tensor = torch.zeros(1000)
    storage = weakref.ref(tensor.untyped_storage())
    known = KnownTensors()
    outline({"model": {"weight": tensor}}, known=known)
    del tensor
    gc.collect()
    assert storage() is None


def test_a_save_that_rounds_and_one_that_does_not_tell_their_dtypes_apart() -> None:
    model, optimizer = training()
    known = KnownTensors()
    state = state_of(TrainingObjects(model=model, optimizer=optimizer))
    exact = outline(state, known=known)
    lossy = outline(state, lossy="bf16-moments", known=known)
    assert {entry.dtype for entry in lossy.entries} != {entry.dtype for entry in exact.entries}
    assert outline(state, known=known).entries == exact.entries
