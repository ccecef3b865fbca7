"""A state that is too large for a second copy is saved all the same, as the same content, without an arena."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from milepost.checkpoint import streaming
from milepost.checkpoint.arena import Arena
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.commit import commit
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.snapshot import Stager, outline
from milepost.checkpoint.streaming import commit_from_live, worth_streaming
from milepost.core.config import ExperimentConfig


def test_a_state_is_streamed_if_its_arena_would_take_more_than_a_quarter_of_what_is_left():
    assert worth_streaming(26, 0, room=100)
    assert not worth_streaming(25, 0, room=100)
    assert not worth_streaming(90, 90, room=0)  # the arena that is there takes it
    assert not worth_streaming(40, 60, room=100)
    assert worth_streaming(60, 20, room=100)  # a larger one is made when the present one is gone
    assert not worth_streaming(30, 20, room=100)


def every_kind_of_tensor() -> dict:
    torch.manual_seed(3)
    storage = torch.randn(50_000)
    return {
        "model": {
            "large": torch.randn(700, 700),
            "transposed": torch.randn(300, 200).t(),
            "with_gaps": torch.randn(400, 300)[:, ::3],
            "one": storage[:30_000],
            "overlapping": storage[10_000:],
            "half": torch.randn(1000).bfloat16(),
            "complex": torch.randn(50, dtype=torch.complex64).conj(),
            "scalar": torch.tensor(7),
            "empty": torch.empty(0, 3),
        }
    }


@pytest.mark.parametrize("lossy", ["", "bf16-moments"])
def test_the_file_holds_what_one_from_an_arena_holds(tmp_path, lossy):
    state = every_kind_of_tensor()
    state["optimizer"] = {
        "param_groups": [{"params": [0], "param_names": ["large"]}],
        "state": {0: {"exp_avg": torch.randn(700, 700)}},
    }
    content = outline(state, lossy=lossy)
    arena = Arena()
    Stager().stage(content, arena)
    digests = []
    for name in ("staged", "streamed"):
        job = SaveJob(
            path=str(tmp_path / f"{name}.milepost"),
            experiment_id="run",
            step=1,
            tree=content.tree,
            tensors=content.entries,
            arena_bytes=content.nbytes,
            lossy=lossy,
        )
        info = commit(job, arena.view) if name == "staged" else commit_from_live(job, content)
        with open_checkpoint(info.path) as file:
            file.verify()
            digests.append({tensor.name: (tensor.digest, tensor.dtype) for tensor in file.manifest.tensors})
    assert digests[0] == digests[1]
    assert "bfloat16" in {dtype for _, dtype in digests[0].values()}


def test_a_large_state_is_streamed_says_so_once_and_loads_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "available_memory", lambda: 16 << 20)
    said = []
    checkpointer = ModelCheckpointer(ExperimentConfig(checkpoint_dir=str(tmp_path)), notice=said.append)
    model = torch.nn.Linear(1024, 2048)  # 8 MiB
    for step in (1, 2):
        path = checkpointer.save_checkpoint(model, step=step)
        assert path.is_file()  # committed by the training thread itself
    checkpointer.wait()
    assert [noticed.topic for noticed in said] == ["streamed"]
    assert checkpointer._writer.arena().size == 0
    copy = torch.nn.Linear(1024, 2048)
    checkpointer.load_checkpoint("latest", copy)
    assert torch.equal(copy.weight, model.weight)
    assert [info.verified for info in checkpointer.list_checkpoints()] == [True, True]


@pytest.mark.linux
def test_limits_that_leave_no_room_for_an_arena_leave_the_checkpoint(tmp_path):
    code = """
import resource, sys, torch
import milepost
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.io.memory import SharedSegment
model = torch.nn.Linear(1024, 8192)
torch.nn.init.zeros_(model.weight)  # its file stays far below the limit; an arena is as large as the state
resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))
checkpointer = ModelCheckpointer(milepost.ExperimentConfig(checkpoint_dir=sys.argv[1]))
checkpointer.save_checkpoint(model, step=1)
checkpointer.wait()
print([info.step for info in checkpointer.list_checkpoints()])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr
    assert done.stderr.count("training waits while it is written") == 1
