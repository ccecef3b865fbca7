"""Readers never write: whatever is asked of a store, not a byte and not a time in it changes."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import Script, run_script

TRAINING = """
    import os, sys, torch
    import milepost
    model = torch.nn.Linear(8, 8)
    run = milepost.start("read", tags=["a"], tensorboard_dir=None, best_metric="loss")
    print("a line")
    for step in range(20):
        run.log({"loss": 1.0 / (step + 1), "bad": float("nan")}, step, epoch=0)
    run.log_text("note", "text")
    run.save_checkpoint(model, step=10, metrics={"loss": 0.1})
    run.save_checkpoint(model, step=19, metrics={"loss": 0.2})
    run.wait()
    if sys.argv[1:] or os.environ.get("LIVE"):
        print("live", flush=True)
        sys.stdin.readline()
    run.end({"final": 0.5})
"""


def tree_of(folder: Path) -> dict[str, tuple]:
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, content)
    return found


def ask_everything(folder: Path) -> None:
    store = milepost.open(folder)
    repr(store)
    for run in store.runs():
        for reader in (run, store[run.id], store[run.name], run.refresh()):
            for name in dir(type(reader)):
                if not name.startswith("_") and not callable(getattr(type(reader), name)):
                    getattr(reader, name)
            for metric in reader.metrics():
                reader.series(metric)
                reader.series(metric, superseded=True)
                reader.summarize(metric)
            repr(reader)
        assert run.latest.step == 19
        assert run.best.step == 10
        assert set(milepost.load(run.best.path)["model"]) == {"weight", "bias"}
        with milepost.open_checkpoint(run.latest.path) as file:
            repr(file.info)
    checkpointer = milepost.ModelCheckpointer(milepost.ExperimentConfig(root=str(folder)))
    assert [info.step for info in checkpointer.list_checkpoints(store.runs()[0].id)] == [10, 19]
    with pytest.raises(milepost.NotFoundError):
        store["absent"]


@pytest.fixture
def read_only(tmp_path) -> Iterator[Path]:
    """The folder of the test as a place where the kernel refuses every write."""
    if os.geteuid() != 0:
        pytest.skip("a read-only mount needs root")
    place = tmp_path.with_name(tmp_path.name + "-read-only")
    place.mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path), str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.linux
def test_a_finished_store_is_read_where_nothing_can_be_written(tmp_path, read_only):
    _, err, code = run_script(tmp_path, TRAINING)
    assert code == 0, err
    subprocess.run(["mount", "-o", "remount,bind,ro", str(read_only)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "probe").touch()
    before = tree_of(tmp_path)
    ask_everything(read_only)
    assert tree_of(tmp_path) == before


def test_a_finished_store_is_as_it_was_after_it_was_read(tmp_path):
    _, err, code = run_script(tmp_path, TRAINING)
    assert code == 0, err
    before = tree_of(tmp_path)
    ask_everything(tmp_path)
    assert tree_of(tmp_path) == before


@pytest.mark.linux
def test_a_store_whose_training_and_companion_were_killed_is_as_it_was_after_it_was_read(tmp_path):
    script = Script(
        tmp_path, TRAINING.replace('print("live"', 'print("live", run._companion.pid'), stdin=True, LIVE="1"
    )
    companion = int(script.wait_for_line("live")[-1].split()[1])
    os.kill(companion, 19)
    script.process.kill()
    os.kill(companion, 9)
    script.finish()
    deadline = time.monotonic() + 60
    while milepost.open(tmp_path)["read"].state.live:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = tree_of(tmp_path)
    ask_everything(tmp_path)
    assert milepost.open(tmp_path)["read"].status == "killed"
    assert tree_of(tmp_path) == before
