from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from milepost.checkpoint import copying
from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.catalog import scan
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.loading import load_state
from milepost.checkpoint.position import NOT_SAVED
from milepost.checkpoint.restore import resume_objects
from milepost.checkpoint.side_file import side_file
from milepost.core.config import ExperimentConfig
from milepost.core.errors import (
    CorruptDataError,
    InvalidCallError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from milepost.core.events import Noticed


def checkpointer(folder: Path, *, experiment_id: str | None = "run", **settings: Any) -> ModelCheckpointer:
    return ModelCheckpointer(ExperimentConfig(root=str(folder), **settings), experiment_id=experiment_id)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096] ^= 1
    path.write_bytes(content)


def test_files_are_named_by_stamp_step_and_best(tmp_path: Path) -> None:
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path)), stamp="20261124-133155-000001")
    model = nn.Linear(2, 2)
    names = [saver.save_checkpoint(model, step=7).name, saver.save_checkpoint(model, step=7, is_best=True).name]
    names += [saver.save_checkpoint(model, step=8).name]
    saver.wait()

    assert names == [
        "checkpoint_20261124-133155-000001_7.milepost",
        "checkpoint_20261124-133155-000001_7-2_best.milepost",
        "checkpoint_20261124-133155-000001_8.milepost",
    ]
    assert {name for name in os.listdir(saver.folder) if not name.startswith(".")} == {*names, "checkpoints.json"}


def test_a_list_made_after_a_save_contains_it_by_step(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path)
    model = nn.Linear(2, 2)
    for step in (20, 10):
        saver.save_checkpoint(model, epoch=1, step=step, metrics={"loss": np.float32(0.5), "n": torch.tensor(3)})
    infos = saver.list_checkpoints("run")

    assert [info["step"] for info in infos] == [10, 20]
    assert infos[0]["filename"].startswith("checkpoint_")
    assert infos[0].metrics == {"loss": 0.5, "n": 3}
    assert infos[0].contents == ("model", "rng", "facts")
    assert infos[0].epoch == 1
    assert infos[0].stall_ms > 0
    assert saver.list_checkpoints("another") == []


def test_the_newest_and_the_best_are_kept_of_this_experiment_only(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    other = checkpointer(tmp_path, experiment_id="other", max_checkpoints=1)
    other.save_checkpoint(model, step=1)
    other.wait()
    saver = checkpointer(tmp_path, max_checkpoints=2)
    for step in range(6):
        saver.save_checkpoint(model, step=step, is_best=step == 1, pin=step == 0)
    saver.wait()

    assert [info.step for info in saver.list_checkpoints()] == [0, 1, 4, 5]
    assert [info.step for info in other.list_checkpoints()] == [1]
    assert [info.step for info in checkpointer(tmp_path, experiment_id=None).list_checkpoints()] == [0, 1, 1, 4, 5]
    assert all(info.verified for info in saver.list_checkpoints())


def test_the_best_is_marked_or_measured_or_none(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    saver = checkpointer(tmp_path, best_metric="accuracy", best_mode="max")
    assert saver.get_best_checkpoint() is None
    for step, accuracy in enumerate((0.2, 0.9, 0.5)):
        saver.save_checkpoint(model, step=step, metrics={"accuracy": accuracy})

    assert saver.get_best_checkpoint().step == 1  # type: ignore[union-attr]
    saver.save_checkpoint(model, step=3, is_best=True)
    assert saver.get_best_checkpoint("run").step == 3  # type: ignore[union-attr]
    assert saver.load_checkpoint("best").step == 3


def test_a_checkpoint_is_found_by_path_name_record_step_and_word(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    saver = checkpointer(tmp_path)
    first = saver.save_checkpoint(model, step=10, epoch=3, metrics={"loss": 1.0})
    saver.save_checkpoint(model, step=20)
    record = saver.list_checkpoints()[0]

    for selector in (first, str(first), first.name, record, 10):
        report = saver.load_checkpoint(selector, model)
        assert (report["step"], report["epoch"], report["metrics"]) == (10, 3, {"loss": 1.0})
    assert saver.load_checkpoint("latest", model).step == 20
    with pytest.raises(NotFoundError, match=r"no checkpoint of step 11 .* are of step: 10, 20"):
        saver.load_checkpoint(11, model)
    with pytest.raises(NotFoundError, match="no checkpoint is marked best"):
        saver.load_checkpoint("best", model)
    with pytest.raises(InvalidCallError, match="chosen by a float"):
        saver.load_checkpoint(1.5, model)  # type: ignore[arg-type]


def test_a_device_that_is_not_here_is_a_note_and_never_an_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    model = nn.Linear(2, 2)
    saver = checkpointer(tmp_path)
    path = saver.save_checkpoint(model, step=1)

    report = saver.load_checkpoint(path, model, device="cuda")

    assert report.notes == ("device 'cuda' is not here: loaded to where the model lives",)
    with pytest.raises(InvalidInputError, match="device is 'quantum'"):
        saver.load_checkpoint(path, model, device="quantum")


def test_saves_are_due_after_so_many_steps_and_once_after_a_signal(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, save_frequency=10)
    model = nn.Linear(1, 1)

    assert [step for step in range(12) if saver.should_save(step)] == [10, 11]
    saver.save_checkpoint(model, step=12)
    assert [step for step in range(13, 23) if saver.should_save(step)] == [22]
    saver.resumed_at(95)
    assert [step for step in range(96, 106) if saver.should_save(step)] == [105]
    saver._cadence.signalled = True
    assert [step for step in range(96, 100) if saver.should_save(step)] == [96]


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"model": "bert"}, InvalidCallError, "model is of type str"),
        ({"model": [nn.Linear(1, 1)]}, InvalidCallError, "ModuleDict"),
        ({"optimizer": "adam"}, InvalidCallError, "optimizer is of type str"),
        ({"optimizer": [1]}, InvalidCallError, 'extra={"name": ...}'),
        ({"scheduler": 3}, InvalidCallError, "scheduler is of type int"),
        ({"scaler": 3}, InvalidCallError, "scaler is of type int"),
        ({"loader": 3}, InvalidCallError, "loader is of type int"),
        ({"extra": [1]}, InvalidCallError, "extra is of type list"),
        ({"step": "7"}, InvalidCallError, "step is '7'"),
        ({"step": 1.5}, InvalidCallError, "step is 1.5"),
        ({"step": True}, InvalidCallError, "step is True"),
        ({"step": -1}, InvalidInputError, "step is -1"),
        ({"epoch": "one"}, InvalidCallError, "epoch is 'one'"),
        ({"metrics": [0.5]}, InvalidCallError, "metrics is of type list"),
        ({"metrics": {"loss": torch.ones(2)}}, InvalidInputError, "metric 'loss' is of type Tensor"),
        ({"extra": {"thing": object()}}, InvalidInputError, "extra.thing: object cannot be saved"),
        ({"extra": {"a": {"b": torch.ones(1).to_sparse()}}}, InvalidInputError, "extra.a.b: a sparse_coo tensor"),
    ],
)
def test_a_wrong_call_raises_at_once_and_says_what_to_do(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], told: str
) -> None:
    saver = checkpointer(tmp_path)
    with pytest.raises(error, match=re.escape(told)):
        saver.save_checkpoint(**({"model": nn.Linear(1, 1), "step": 1} | arguments))
    assert saver.list_checkpoints() == []
    saver.save_checkpoint(nn.Linear(1, 1), step=np.int64(2))
    assert [info.step for info in saver.list_checkpoints()] == [2]


def test_a_full_disk_never_raises_in_the_loop_and_is_told_to_who_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = checkpointer(tmp_path)
    blocked = saver.folder
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file where the folder should be")
    model = nn.Linear(2, 2)

    failed = saver.save_checkpoint(model, step=1)
    with pytest.raises(StorageError):
        saver.wait()
    with pytest.raises(StorageError):
        open(failed)  # noqa: SIM115
    blocked.unlink()
    path = saver.save_checkpoint(model, step=2)
    saver.wait()

    assert path.exists()
    assert "checkpoint of step 1 was not saved" in capsys.readouterr().err


def test_on_request_a_failed_save_raises_from_the_next_one_and_only_once(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, on_save_error="raise")
    saver.folder.write_text("in the way")
    model = nn.Linear(2, 2)
    saver.save_checkpoint(model, step=1)
    saver.folder.unlink()

    with pytest.raises(StorageError):
        saver.save_checkpoint(model, step=2)
    saver.save_checkpoint(model, step=3)
    saver.wait()


def test_a_damaged_checkpoint_is_named_and_the_newest_sound_one_offered_or_taken(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path)
    model = nn.Linear(200, 200)
    paths = []
    for step in (1, 2, 3):
        nn.init.constant_(model.weight, step)
        paths.append(Path(str(saver.save_checkpoint(model, step=step))))
    saver.wait()
    damage(paths[2])
    shutil.copy(paths[0], paths[1])  # whole, but cut below
    with open(paths[1], "r+b") as file:
        file.truncate(10_000)
    nn.init.constant_(model.weight, 9.0)

    with pytest.raises(CorruptDataError) as caught:
        saver.load_checkpoint("latest", model)
    assert paths[2].name in str(caught.value)
    assert paths[0].name in str(caught.value)
    assert bool((model.weight == 9.0).all())

    report = saver.load_checkpoint("latest", model, fallback=True)
    assert report.step == 1
    assert bool((model.weight == 1.0).all())
    assert paths[2].name in report.notes[0]
    assert paths[0].name in report.notes[-1]


def test_a_newest_file_that_cannot_be_read_at_all_is_not_quietly_passed_over(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path)
    model = nn.Linear(2, 2)
    saver.save_checkpoint(model, step=1)
    newest = Path(str(saver.save_checkpoint(model, step=2)))
    saver.wait()
    newest.write_bytes(b"")

    with pytest.raises(CorruptDataError, match=newest.name):
        saver.load_checkpoint("latest", model)
    (saver.folder / "checkpoints.json").unlink()
    with pytest.raises(CorruptDataError, match=newest.name):
        saver.load_checkpoint("latest", model)
    assert saver.load_checkpoint("latest", model, fallback=True).step == 1


def test_two_threads_may_save_at_once(tmp_path: Path) -> None:
    saver = checkpointer(tmp_path, max_checkpoints=20)
    models = [nn.Linear(50, 50) for _ in range(4)]
    paths: dict[int, Path] = {}

    def save(index: int) -> None:
        paths[index] = saver.save_checkpoint(models[index], step=index)

    threads = [threading.Thread(target=save, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    saver.wait()

    for index, model in enumerate(models):
        assert torch.equal(load_state(paths[index]).state["model"]["weight"], model.weight)


def ranks(folder: Path, stamp: str = "s", **settings: Any) -> list[ModelCheckpointer]:
    config = ExperimentConfig(root=str(folder), **settings)
    return [ModelCheckpointer(config, experiment_id="run", stamp=stamp, rank=rank, world_size=2) for rank in range(2)]


@pytest.mark.parametrize("kind", ["milepost", "pt", "safetensors"])
def test_each_rank_gets_its_own_random_numbers_back(tmp_path: Path, kind: str) -> None:
    zero, one = ranks(tmp_path, checkpoint_format=kind)
    model = nn.Linear(2, 2)
    torch.manual_seed(1)
    second = one.save_checkpoint(model, step=5)
    wanted_of_one = torch.rand(3)
    torch.manual_seed(2)
    first = zero.save_checkpoint(model, step=5)
    wanted_of_zero = torch.rand(3)
    zero.wait()
    one.wait()

    assert str(first) == str(second)
    assert [name for name in os.listdir(zero.folder) if "rank" in name] == []
    assert resume_objects(first, model, rank=1).notes == ()
    assert torch.equal(torch.rand(3), wanted_of_one)
    assert resume_objects(first, model, rank=0).notes == ()
    assert torch.equal(torch.rand(3), wanted_of_zero)
    assert resume_objects(first, model, rank=2).notes == ("random numbers and data position of rank 2 were not saved",)


def test_a_rank_that_never_comes_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.checkpoint.finishing._RANKS_TIMEOUT", 0.05)
    zero, _ = ranks(tmp_path)
    path = zero.save_checkpoint(nn.Linear(2, 2), step=5)
    zero.wait()

    assert load_state(path).state["ranks"] == {}


def test_the_side_file_does_not_depend_on_who_knows_what_is_best() -> None:
    names = {side_file(Path("/c") / name, 3).name for name in ("checkpoint_s_5.pt.gz", "checkpoint_s_5_best.pt.gz")}

    assert names == {".checkpoint_s_5.rank3"}
    assert side_file(Path("/c/checkpoint_s_5-2_best.milepost"), 1).name == ".checkpoint_s_5-2.rank1"


def test_what_the_user_should_know_once_is_said_once(tmp_path: Path) -> None:
    notices: list[Noticed] = []
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path)), notice=notices.append)
    for step in range(3):
        saver.save_checkpoint(nn.Linear(1, 1), step=step, loader=[1, 2, 3])
    saver.wait()

    assert [f"{notice.message}: {notice.cure}" for notice in notices] == [NOT_SAVED]


def test_a_save_is_committed_although_the_program_ends_right_after_it(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from milepost import ModelCheckpointer, ExperimentConfig\n"
        "saver = ModelCheckpointer(ExperimentConfig(root=sys.argv[1]))\n"
        "print(saver.save_checkpoint(torch.nn.Linear(300, 300), step=1))\n"
    )
    path = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout.strip()

    assert load_state(path).info.step == 1
    assert scan(tmp_path / "checkpoints").infos[0].verified


def test_disabled_mode_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILEPOST_MODE", "disabled")
    saver = checkpointer(tmp_path)
    path = saver.save_checkpoint(nn.Linear(1, 1), step=1)
    saver.wait()

    assert path.name.endswith("_1.milepost")
    assert not saver.folder.exists()


def test_importing_the_writing_side_does_not_import_torch() -> None:
    modules = "finishing, catalog, retention, commit, writer, checkpointer, selection, arena, loading"
    code = f"from milepost.checkpoint import {modules}\nimport sys\nassert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_whose_name_is_no_unicode_is_refused_with_its_cure(tmp_path: Path) -> None:
    config = ExperimentConfig(checkpoint_dir=os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(InvalidInputError, match="UTF-8"):
        ModelCheckpointer(config).save_checkpoint(nn.Linear(2, 2), step=1)


def overlapping(folder: Path, notices: list[Noticed]) -> tuple[ModelCheckpointer, Any, Any]:
    config = ExperimentConfig(root=str(folder), snapshot="overlap")
    saver = ModelCheckpointer(config, experiment_id="run", notice=notices.append)
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(2, 64)).sum().backward()
    for step in range(3):
        optimizer.step()
        saver.save_checkpoint(model, optimizer, step=step)
    return saver, model, optimizer


def test_an_overlapped_save_is_the_state_at_the_call(tmp_path: Path) -> None:
    saver, model, optimizer = overlapping(tmp_path, [])
    for step in range(3, 8):
        optimizer.step()
        expected = model.weight.detach().clone()
        path = saver.save_checkpoint(model, optimizer, step=step)
        optimizer.step()
        assert torch.equal(torch.as_tensor(load_state(Path(os.fspath(path))).state["model"]["weight"]), expected)

    report = saver.load_checkpoint(7, model, optimizer)
    assert report.step == 7
    assert torch.equal(model.weight, expected)


def test_an_overlapped_save_that_was_torn_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[Noticed] = []
    saver, model, optimizer = overlapping(tmp_path, notices)
    opened, move = threading.Event(), copying._move

    def gated(shares: Any) -> None:
        assert threading.current_thread().name != "milepost-copy" or opened.wait(60)
        move(shares)

    monkeypatch.setattr(copying, "_move", gated)
    optimizer.step()
    path = saver.save_checkpoint(model, optimizer, step=3)
    assert saver.save_checkpoint(model, optimizer, step=4, busy="skip") is None
    model.weight.data.mul_(0.5)
    opened.set()
    with pytest.raises(StorageError, match="changed while it was copied") as caught:
        os.fspath(path)
    assert caught.value.kind == "torn"

    saver.save_checkpoint(model, optimizer, step=4)
    saver.wait()
    assert [info.step for info in saver.list_checkpoints()] == [0, 1, 2, 4]
    assert {notice.topic for notice in notices} == {"overlap"}  # the failure is the writer's to report


def wait_for_helpers() -> None:
    for thread in threading.enumerate():
        if thread.name == "milepost-prepare":
            thread.join()


def trained(*optimizers: torch.optim.Optimizer) -> None:
    for optimizer in optimizers:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch's own, while it compiles
@pytest.mark.parametrize("compiled", [False, True])
def test_the_memory_of_the_first_save_is_made_once_the_optimizers_have_their_state(
    tmp_path: Path, *, compiled: bool
) -> None:
    save = checkpointer(tmp_path)
    generator, critic = nn.Linear(500, 500), nn.Linear(500, 500)
    ours, theirs = torch.optim.AdamW(generator.parameters()), torch.optim.AdamW(critic.parameters())
    save.watch(TrainingObjects(generator, ours, extra={"critic": critic, "of_critic": theirs, "note": "plain"}))
    if compiled:
        ours.step = torch.compile(ours.step, backend="eager")  # type: ignore[method-assign]
    trained(ours)
    wait_for_helpers()
    assert save._writer.arena().size == 0  # half of the state is still to come
    trained(theirs)
    wait_for_helpers()
    size = save._writer.arena().size
    assert size >= 6 * 500 * 500 * 4
    save.save_checkpoint(generator, ours, step=1, extra={"critic": critic, "of_critic": theirs, "note": "plain"})
    save.wait()
    assert save._writer.arena().size == size


def test_what_cannot_be_saved_is_told_by_the_save_and_not_by_an_optimizers_step(tmp_path: Path) -> None:
    save = checkpointer(tmp_path)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    objects = TrainingObjects(model, optimizer, extra={"odd": object()})
    save.watch(objects)
    trained(optimizer)
    with pytest.raises(InvalidInputError, match=r"extra\.odd"):
        save.save_checkpoint(model, optimizer, step=1, extra={"odd": objects.extra["odd"]})  # type: ignore[index]
