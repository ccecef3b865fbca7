from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.regions import lay_out, state_bytes
from milepost.checkpoint.snapshot import Staged, Stager, outline, walk
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import InvalidInputError, StorageError


def read_back(staged: Staged, arena: Arena) -> Any:
    """The staged state, from nothing but what the writer is given."""
    tensors = read_tensors(staged, arena)
    return decode_tree(json.loads(staged.tree), leaf=tensors.__getitem__)


def read_tensors(staged: Staged, arena: Arena) -> list[torch.Tensor]:
    """The staged tensors, in their order."""
    memory = (
        torch.frombuffer(bytearray(arena.view[: staged.nbytes]), dtype=torch.uint8) if staged.nbytes else torch.empty(0)
    )

    def tensor(entry: TensorEntry) -> torch.Tensor:
        flat = memory[entry.offset : entry.offset + entry.nbytes].view(getattr(torch, entry.dtype))
        return flat.view(entry.shape) if entry.stride is None else flat.as_strided(entry.shape, entry.stride)

    return [tensor(entry) for entry in staged.tensors]


def round_trip(state: dict[str, Any]) -> tuple[Staged, dict[str, Any]]:
    arena = Arena()
    staged = Stager().stage(outline(state), arena)
    return staged, read_back(staged, arena)


def every_dtype() -> list[torch.dtype]:
    return sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", every_dtype(), ids=str)
def test_every_dtype_keeps_its_bytes_in_every_layout_or_is_refused_by_name(dtype: torch.dtype) -> None:
    try:
        memory = torch.randint(0, 2 if dtype == torch.bool else 255, (256,), dtype=torch.uint8).view(dtype)
    except RuntimeError:  # torch itself cannot make such a tensor
        return
    if str(dtype).removeprefix("torch.") not in DTYPES:
        with pytest.raises(InvalidInputError, match=rf"x: a (quantised )?tensor( of {dtype})? cannot be saved"):
            walk({"x": memory})
        return
    grid = memory.view(4, -1)
    staged, back = round_trip({"x": memory.clone(), "gaps": grid.clone()[:, ::2], "turned": grid.clone().t()})

    assert staged.tensors[0].dtype == str(dtype).removeprefix("torch.")
    for name, tensor in (("x", memory), ("gaps", grid[:, ::2]), ("turned", grid.t())):
        assert torch.equal(bits(back[name]), bits(tensor))
        assert back[name].dtype == dtype


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Something that can be compared, also where numbers are none."""
    if tensor.dtype == torch.complex128:
        return torch.view_as_real(tensor.resolve_conj()).view(torch.int64)
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


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


def test_one_tensor_under_two_names_is_one_window_and_a_part_of_it_another_one_of_the_same_memory() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    staged, back = round_trip({"a": weight, "b": weight, "alias": weight.detach(), "part": weight[:2]})

    assert [entry.name for entry in staged.tensors] == ["a", "part"]
    assert len({entry.storage for entry in staged.tensors}) == 1
    assert staged.nbytes == weight.nbytes
    assert torch.equal(back["alias"], weight)
    assert torch.equal(back["part"], weight[:2])


def test_a_small_view_of_a_huge_storage_costs_what_it_shows() -> None:
    huge = torch.randn(1 << 20)
    staged, back = round_trip({"row": huge[5:15], "far": huge[-3:], "column": huge.view(1024, 1024)[:, 7]})

    assert staged.nbytes <= 64 + 64 + 1024 * 4
    assert torch.equal(back["column"], huge.view(1024, 1024)[:, 7])
    assert torch.equal(back["far"], huge[-3:])


def test_views_of_one_storage_with_different_dtypes_share_it() -> None:
    numbers = torch.randn(64)
    state = {"numbers": numbers, "halves": numbers.view(torch.bfloat16)[3:9], "bytes": numbers.view(torch.uint8)[5:7]}
    staged, back = round_trip(state)

    assert staged.nbytes == numbers.nbytes
    for name, tensor in state.items():
        assert torch.equal(bits(back[name]), bits(tensor))


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Views of a few storages: tied, overlapping, strided, repeated, in another dtype."""
    storages = [torch.randn(draw(st.sampled_from([48, 60, 720]))) for _ in range(draw(st.integers(1, 3)))]
    state: dict[str, torch.Tensor] = {}
    for index in range(draw(st.integers(1, 8))):
        flat = draw(st.sampled_from(storages)).view(draw(st.sampled_from([torch.float32, torch.int16, torch.uint8])))
        rows = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
        first, step = draw(st.integers(0, 5)), draw(st.integers(1, 3))
        view = flat.view(rows, -1)[:, first::step]
        changes = [lambda t: t, lambda t: t.t(), lambda t: t[:1].expand(3, -1), lambda t: t[0], lambda t: t[0, :1]]
        state[f"t{index}"] = draw(st.sampled_from(changes))(view)
    return state


@given(states())
@settings(max_examples=150, deadline=None)
def test_any_views_come_back_equal_share_their_memory_and_do_not_change_any_more(state: dict[str, Any]) -> None:
    expected = {name: tensor.clone() for name, tensor in state.items()}
    arena, content = Arena(), outline(state)
    staged = Stager().stage(content, arena)
    for tensor in state.values():
        tensor.untyped_storage().fill_(0x5A)
    back = read_back(staged, arena)

    for name, tensor in expected.items():
        assert torch.equal(bits(back[name]), bits(tensor)), name
    distinct = {(t.data_ptr(), t.dtype, t.shape, t.stride()): t.numel() * t.element_size() for t in state.values()}
    assert state_bytes(staged.tensors) <= sum(distinct.values())
    lay_out(staged.tensors, np.frombuffer(arena.view, np.uint8))  # raises unless the writer can take it


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


class Labelled(torch.Tensor):
    """A subclass whose content is its storage, and that answers for itself."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in {"detach", "copy_", "as_strided"}:
            raise AssertionError(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_subclass_that_is_its_memory_is_saved_as_a_tensor() -> None:
    _, back = round_trip({"x": torch.arange(3.0).as_subclass(Labelled)})

    assert type(back["x"]) is torch.Tensor
    assert torch.equal(back["x"], torch.arange(3.0))


def test_a_subclass_with_tensors_beside_its_memory_is_refused_by_name() -> None:
    scaled = torch.ones(3).as_subclass(Labelled)
    scaled.scale = torch.tensor(2.0)
    with pytest.raises(InvalidInputError, match="x: a Labelled, which keeps tensors beside its data cannot be saved"):
        walk({"x": scaled})


def test_tensors_without_a_memory_of_their_own_are_refused_by_name() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(3)
    with warnings.catch_warnings(action="ignore"):  # torch calls them a prototype
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for value, told in ((fake, "type FakeTensor"), (nested, "a nested tensor")):
        with pytest.raises(InvalidInputError, match=f"x: .*{told}"):
            walk({"x": value})

    def inside(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(InvalidInputError, match=r"inside of a torch\.func transformation"):
            walk({"x": x})
        return x.sum()

    torch.func.grad(inside)(torch.ones(3))


def test_memory_that_was_freed_is_never_read_also_at_a_later_save() -> None:
    weight = torch.randn(1000)
    arena, stager = Arena(), Stager()
    stager.stage(outline({"w": weight}), arena)
    weight.untyped_storage().resize_(2000)
    with pytest.raises(InvalidInputError, match="w: a tensor whose memory was freed or cut short"):
        outline({"w": weight})
    weight.untyped_storage().resize_(0)
    with pytest.raises(InvalidInputError, match="w: a tensor whose memory was freed or cut short"):
        outline({"w": weight})


def test_inference_tensors_are_saved() -> None:
    with torch.inference_mode():
        weight = torch.randn(3, 4)[:, ::2]
    _, back = round_trip({"w": weight})
    assert torch.equal(back["w"], weight)

    with torch.inference_mode():
        _, back = round_trip({"w": weight})
    assert torch.equal(back["w"], weight)


def test_the_plan_is_used_again_while_the_tensors_stay() -> None:
    state = {"w": torch.randn(100), "empty": torch.empty(0), "gaps": torch.randn(4, 4)[:, :2]}
    first, second = outline(state), outline({name: tensor.detach() for name, tensor in state.items()})

    assert first.signature == second.signature
    assert outline(state | {"w": torch.randn(100)}).signature != first.signature


def test_arrays_of_one_address_and_different_lengths_are_not_one_storage() -> None:
    numbers = np.arange(10_000.0)
    _, back = round_trip({"part": torch.from_numpy(numbers[:5]), "all": torch.from_numpy(numbers)})

    assert np.array_equal(back["all"], numbers)
    assert np.array_equal(back["part"], numbers[:5])


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
