from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.snapshot import Staged, Stager, outline, walk
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import InvalidInputError, StorageError


def read_back(staged: Staged, arena: Arena) -> Any:
    """The staged state, from nothing but what the writer is given."""
    memory = (
        torch.frombuffer(bytearray(arena.view[: staged.nbytes]), dtype=torch.uint8) if staged.nbytes else torch.empty(0)
    )

    def tensor(index: int) -> torch.Tensor:
        entry = staged.tensors[index]
        flat = memory[entry.offset : entry.offset + entry.nbytes].view(getattr(torch, entry.dtype))
        return flat.view(entry.shape) if entry.stride is None else flat.as_strided(entry.shape, entry.stride)

    return decode_tree(json.loads(staged.tree), leaf=tensor)


def round_trip(state: dict[str, Any]) -> tuple[Staged, dict[str, Any]]:
    arena = Arena()
    staged = Stager().stage(outline(state), arena)
    return staged, read_back(staged, arena)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_keeps_its_bytes(name: str) -> None:
    dtype = getattr(torch, name)
    content = torch.randint(0, 2 if name == "bool" else 255, (256,), dtype=torch.uint8).view(dtype)
    staged, back = round_trip({"x": content})

    assert staged.tensors[0].dtype == name
    assert torch.equal(back["x"].view(torch.uint8), content.view(torch.uint8))


def test_layouts_come_back_as_they_were() -> None:
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {
        "channels_last": images,
        "transposed": torch.randn(3, 4).t(),
        "with_gaps": torch.randn(6, 6)[:, ::2],
        "repeated": torch.arange(3.0).expand(4, 3),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
        "parameter": nn.Parameter(torch.randn(2)),
    }
    _, back = round_trip(state)

    for name, tensor in state.items():
        assert torch.equal(back[name], tensor.detach().resolve_conj().resolve_neg()), name
    assert back["channels_last"].stride() == images.stride()
    assert back["transposed"].stride() == state["transposed"].stride()


def test_one_tensor_under_two_names_is_one_window() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    staged, back = round_trip({"a": weight, "b": weight, "alias": weight.detach(), "part": weight[:2]})

    assert [entry.name for entry in staged.tensors] == ["a", "part"]
    assert torch.equal(back["alias"], weight)
    assert torch.equal(back["part"], weight[:2])


def test_names_are_places_and_unique() -> None:
    state = {"m": {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, "list": [torch.ones(2), (torch.ones(3),)]}}
    staged, _ = round_trip(state)

    assert [entry.name for entry in staged.tensors] == ["m.a.b", "m.a.b#2", "m.list.0", "m.list.1.0"]


def test_large_arrays_go_outside_the_tree_also_when_they_are_read_only() -> None:
    large = np.arange(5000.0)
    large.flags.writeable = False
    staged, back = round_trip({"large": large, "small": np.arange(3)})

    assert [entry.name for entry in staged.tensors] == ["large"]
    assert np.array_equal(back["large"], large)
    assert np.array_equal(back["small"], np.arange(3))


def test_a_snapshot_does_not_change_with_the_training() -> None:
    weight = torch.zeros(10)
    arena, stager = Arena(), Stager()
    for value in (1.0, 2.0, 3.0):
        weight.fill_(value)
        staged = stager.stage(outline({"w": weight}), arena)
        weight.fill_(-1.0)
        assert torch.equal(read_back(staged, arena)["w"], torch.full((10,), value))
    assert arena.generation == 1


def test_a_state_that_moves_grows_or_shrinks_is_planned_anew() -> None:
    arena, stager = Arena(), Stager()
    for length in (10, 5_000_000, 20, 20):
        weight = torch.randn(length)
        staged = stager.stage(outline({"w": weight, "step": length}), arena)
        back = read_back(staged, arena)
        assert back["step"] == length
        assert torch.equal(back["w"], weight)
    assert arena.generation == 2


def test_large_tensors_lie_on_pages() -> None:
    staged, _ = round_trip({"a": torch.ones(3), "b": torch.ones(100_000), "c": torch.ones(3)})

    assert staged.tensors[1].offset % 4096 == 0
    assert all(entry.offset % 64 == 0 for entry in staged.tensors)


class Widget:
    pass


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda: torch.randn(3, 3).to_sparse(), "state.x: a sparse_coo tensor cannot be saved"),
        (lambda: torch.empty(3, device="meta"), "state.x: a tensor without data"),
        (lambda: nn.LazyLinear(3).weight, "state.x: a parameter that has no shape yet"),
        (Widget, "state.x: Widget cannot be saved"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(value: Any, told: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        walk({"state": {"x": value()}})
    assert told in str(caught.value)


def test_a_sharded_tensor_is_refused_by_name(tmp_path: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = distribute_tensor(torch.randn(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(InvalidInputError, match=r"model\.head: a tensor of type DTensor cannot be saved"):
            walk({"model": {"head": sharded}})
    finally:
        torch.distributed.destroy_process_group()


def test_a_state_larger_than_the_memory_left_is_an_error_of_the_world() -> None:
    arena = Arena()
    with pytest.raises(StorageError, match="MiB are left"):
        arena.reserve(1 << 50)
    assert arena.size == 0
    arena.reserve(100)
    assert arena.size >= 100
