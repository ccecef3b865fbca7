"""Stored tensors reach live ones whatever memory those have, and a damaged one is found before or named after."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from milepost.checkpoint import read_plan
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.loading import open_state
from milepost.checkpoint.read_plan import Placeholder, ReadPlan
from milepost.core.config import ExperimentConfig


def stored(folder: Path, **tensors: Any) -> Path:
    saver = ModelCheckpointer(ExperimentConfig(root=str(folder)))
    path = saver.save_checkpoint(torch.nn.Linear(1, 1), step=1, extra=tensors)
    saver.wait()
    return Path(str(path))


def read(path: Path, targets: dict[str, Tensor | list[Tensor]]) -> None:
    plan = ReadPlan()
    with open_state(path) as state:
        for name, target in targets.items():
            for one in target if isinstance(target, list) else [target]:
                plan.write(one, state.state["extra"][name])
        plan.carry_out(state.file)


def targets_of_every_kind() -> dict[str, Tensor]:
    wide = torch.zeros(6, 200)
    return {
        "contiguous": torch.zeros(6, 100),
        "window of a larger one": wide[:, 50:150],
        "transposed": torch.zeros(100, 6).t(),
        "another dtype": torch.zeros(6, 100, dtype=torch.float64),
        "inside a flat buffer": torch.zeros(1000)[7:607].view(6, 100),
        "a leaf that needs a gradient": torch.zeros(6, 100, requires_grad=True),
    }


@pytest.mark.parametrize("kind", list(targets_of_every_kind()))
def test_any_live_tensor_gets_the_content(tmp_path: Path, kind: str) -> None:
    content = torch.randn(6, 100)
    target = targets_of_every_kind()[kind]

    read(stored(tmp_path, weight=content), {"weight": target})

    assert torch.equal(target.detach().to(content.dtype), content)


def test_nothing_beside_a_window_is_written(tmp_path: Path) -> None:
    around = torch.full((6, 200), 5.0)

    read(stored(tmp_path, weight=torch.zeros(6, 100)), {"weight": around[:, 50:150]})

    assert int((around == 5.0).sum()) == 600


@pytest.mark.parametrize("live", [torch.channels_last, torch.contiguous_format])
def test_channels_last_is_read_in_its_own_order_and_into_another(tmp_path: Path, live: torch.memory_format) -> None:
    content = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    target = torch.zeros(4, 3, 5, 5).to(memory_format=live)

    read(stored(tmp_path, weight=content), {"weight": target})

    assert torch.equal(target, content)


def test_targets_that_share_memory_are_not_filled_by_two_threads(tmp_path: Path) -> None:
    memory = torch.zeros(4000)
    contents = {f"part{index}": torch.full((2000,), float(index)) for index in range(3)}

    read(
        stored(tmp_path, **contents), {f"part{index}": memory[index * 1000 : index * 1000 + 2000] for index in range(3)}
    )

    assert memory[::1000].tolist() == [0.0, 1.0, 2.0, 2.0]


def test_one_stored_tensor_fills_several_live_ones(tmp_path: Path) -> None:
    content = torch.randn(300)
    targets = [torch.zeros(300), torch.zeros(300), torch.zeros(300, dtype=torch.bfloat16)]

    read(stored(tmp_path, weight=content), {"weight": targets})

    assert torch.equal(targets[0], content)
    assert torch.equal(targets[1], content)
    assert torch.equal(targets[2], content.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.float8_e5m2, torch.uint16])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,)])
def test_every_dtype_and_shape_is_read_in_place(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    content = torch.randint(0, 2, shape).to(dtype)
    target = torch.zeros(shape, dtype=dtype)

    read(stored(tmp_path, weight=content), {"weight": target})

    assert (
        target.view(torch.uint8 if shape else dtype).tolist() == content.view(torch.uint8 if shape else dtype).tolist()
    )


def test_staging_goes_in_batches_when_it_is_more_than_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_plan, "_STAGING_BYTES", 1000)
    contents = {f"part{index}": torch.randn(200 * index) for index in range(5)}
    targets: dict[str, Tensor] = {name: torch.zeros(content.shape).double() for name, content in contents.items()}

    read(stored(tmp_path, **contents), dict(targets))

    for name, content in contents.items():
        assert torch.equal(targets[name], content.double())


def test_autograd_sees_that_a_tensor_was_overwritten(tmp_path: Path) -> None:
    weight = torch.ones(500, requires_grad=True)
    loss = (weight * weight).sum()

    read(stored(tmp_path, weight=torch.zeros(500)), {"weight": weight})

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_placeholder_says_what_is_stored_and_has_no_memory(tmp_path: Path) -> None:
    with open_state(stored(tmp_path, table=np.arange(5000), weight=torch.ones(3, 4).t())) as state:
        weight, table = state.state["extra"]["weight"], state.state["extra"]["table"]
        assert isinstance(weight, Placeholder)
        assert (weight.device.type, tuple(weight.shape), weight.stride()) == ("meta", (4, 3), (1, 4))
        real = state.read({"table": table, "again": weight, "weight": weight})
    assert np.array_equal(real["table"], np.arange(5000))
    assert real["weight"] is real["again"]


MEASURE = """
import resource, sys, torch
from torch import nn
from milepost import ModelCheckpointer, ExperimentConfig
step, root = sys.argv[1:]
model = nn.Sequential(*(nn.Linear(2000, 2000) for _ in range(6)))
optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
for parameter in model.parameters():
    optimizer.state[parameter] = {
        "step": torch.tensor(1.0), "exp_avg": torch.randn_like(parameter), "exp_avg_sq": torch.rand_like(parameter)
    }
saver = ModelCheckpointer(ExperimentConfig(root=root, compression=False))
if step == "save":
    saver.save_checkpoint(model, optimizer, step=1)
    saver.wait()
else:
    if step == "load anew":
        optimizer.state.clear()
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    before = peak()
    saver.load_checkpoint("latest", model, optimizer)
    assert len(optimizer.state) == 12 and bool(optimizer.state[model[3].weight]["exp_avg_sq"].mean() > 0.4)
    print(peak() - before)
"""


def test_loading_into_live_objects_takes_no_second_state_of_memory(tmp_path: Path) -> None:
    def run(step: str) -> str:
        command = [sys.executable, "-c", MEASURE, step, str(tmp_path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run("save")

    assert int(run("load") or 0) < 200  # MiB; the state has 275
    assert int(run("load anew") or 0) < 200
