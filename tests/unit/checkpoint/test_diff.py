from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.commit import commit
from milepost.checkpoint.diff import TensorDifference, diff
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.snapshot import Stager, outline
from milepost.core.errors import CorruptDataError


def saved(folder: Path, step: int, tensors: dict[str, torch.Tensor]) -> Path:
    arena = Arena()
    content = outline({"model": tensors})
    staged = Stager().stage(content, arena)
    path = folder / f"checkpoint_s_{step}.milepost"
    job = SaveJob(
        path=str(path),
        experiment_id="run",
        step=step,
        tree=staged.tree,
        tensors=staged.tensors,
        arena_bytes=staged.nbytes,
    )
    commit(job, arena.view)
    return path


def compared(folder: Path, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, TensorDifference]:
    found = diff(saved(folder, 1, a), saved(folder, 2, b))
    return {one.name.removeprefix("model."): one for one in found}


def test_each_tensor_is_told_by_what_changed(tmp_path: Path) -> None:
    a = {
        "same": torch.ones(9),
        "gone": torch.ones(2),
        "shape": torch.ones(2),
        "dtype": torch.ones(2),
        "values": torch.ones(2),
    }
    b = {
        "same": torch.ones(9),
        "new": torch.ones(3),
        "shape": torch.ones(3),
        "dtype": torch.ones(2).half(),
        "values": torch.zeros(2),
    }
    found = compared(tmp_path, a, b)

    assert {name: one.change for name, one in found.items()} == {
        "same": "equal",
        "gone": "removed",
        "shape": "shape",
        "dtype": "dtype",
        "values": "values",
        "new": "added",
    }
    assert found["new"].shapes == (None, (3,))
    assert found["dtype"].dtypes == ("float32", "float16")
    assert (found["dtype"].l2, found["shape"].l2) == (0.0, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1000, 700), (3,), (), (1, 5), (0, 4)])
def test_the_numbers_are_those_that_torch_computes(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    a = torch.randn(shape).to(dtype)
    b = (a + 0.1 * torch.randn(shape).to(dtype) * (torch.rand(shape) < 0.5)).to(dtype)
    one = compared(tmp_path, {"w": a}, {"w": b})["w"]
    x, y = a.double().flatten(), b.double().flatten()

    assert one.changed == pytest.approx((x != y).double().mean().item() if x.numel() else 0.0)
    assert one.l2 == pytest.approx((y - x).norm().item())
    assert one.max_abs == pytest.approx((y - x).abs().max().item() if x.numel() else 0.0)
    if one.change == "values":
        assert one.relative_l2 == pytest.approx(((y - x).norm() / x.norm()).item())
        assert one.cosine == pytest.approx(torch.nn.functional.cosine_similarity(x, y, dim=0).item())


def test_numbers_that_are_not_finite_are_counted_and_spoil_nothing(tmp_path: Path) -> None:
    a = torch.tensor([math.nan, math.nan, 1.0, math.inf, 4.0])
    b = torch.tensor([math.nan, 2.0, 1.0, math.inf, 1.0])
    one = compared(tmp_path, {"w": a}, {"w": b})["w"]

    assert (one.changed, one.not_finite, one.l2, one.max_abs) == (0.4, 3, 3.0, 3.0)


def test_a_tensor_of_zeros_has_no_angle(tmp_path: Path) -> None:
    one = compared(tmp_path, {"w": torch.zeros(4)}, {"w": torch.ones(4)})["w"]

    assert (one.l2, one.relative_l2, one.cosine) == (2.0, None, None)


def test_another_memory_layout_is_no_difference(tmp_path: Path) -> None:
    a = torch.arange(24.0).reshape(2, 3, 4)
    one = compared(tmp_path, {"w": a}, {"w": a.transpose(1, 2).contiguous().transpose(1, 2)})["w"]

    assert (one.change, one.changed) == ("equal", 0.0)


def test_patterns_choose_and_progress_is_told(tmp_path: Path) -> None:
    a, b = (saved(tmp_path, step, {"x": torch.full((4,), step), "y": torch.full((4,), step)}) for step in (1, 2))
    told: list[tuple[int, int]] = []
    found = diff(a, b, "*x", progress=lambda done, total: told.append((done, total)))

    assert [one.name for one in found] == ["model.x"]
    assert told == [(found[0].nbytes, found[0].nbytes)]


def test_what_is_equal_by_its_digest_is_not_read(tmp_path: Path) -> None:
    content = torch.rand(1 << 18)
    a, b = (saved(tmp_path, step, {"w": content}) for step in (1, 2))
    for path in (a, b):
        damaged = bytearray(path.read_bytes())
        damaged[4096] ^= 1
        path.write_bytes(damaged)

    assert [one.change for one in diff(a, b)] == ["equal"]


def test_damage_is_named(tmp_path: Path) -> None:
    a, b = (saved(tmp_path, step, {"w": torch.full((5000,), float(step))}) for step in (1, 2))
    damaged = bytearray(b.read_bytes())
    damaged[4096] ^= 1
    b.write_bytes(damaged)

    with pytest.raises(CorruptDataError, match="checkpoint_s_2"):
        diff(a, b)
