"""What was staged when every process died is committed by whoever starts next, and nothing else is touched."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.snapshot import outline
from milepost.checkpoint.spool import SpoolSegment, abandoned, recover
from milepost.core.config import ExperimentConfig
from milepost.core.errors import StorageError

pytestmark = pytest.mark.linux

WEIGHTS = torch.arange(100_000, dtype=torch.float32)


CONTENT = outline({"model": {"weight": WEIGHTS}})  # made here: torch's threads do not survive a fork


def staged(folder: Path, step: int = 3, **more) -> tuple[Arena, SaveJob]:
    arena = Arena(folder)
    segment = arena.reserve(CONTENT.nbytes)
    segment.map[: CONTENT.nbytes] = WEIGHTS.numpy().tobytes()
    job = SaveJob(
        path=str(folder / f"checkpoint_s_{step}.milepost"),
        experiment_id="run",
        step=step,
        timestamp=float(step),
        tree=CONTENT.tree,
        tensors=CONTENT.entries,
        arena_bytes=CONTENT.nbytes,
        **more,
    )
    return arena, job


def spools(folder: Path) -> list[Path]:
    return sorted(folder.glob(".spool-*"))


def killed(folder: Path, act) -> None:
    """Run ``act`` in a process that is killed right after it."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def seal(folder: Path, **more) -> None:
    arena, job = staged(folder, **more)
    arena.seal(job)
    assert recover(folder) == []  # its owner lives


def test_a_sealed_spool_of_the_dead_becomes_the_checkpoint_that_it_was_to_be(tmp_path):
    killed(tmp_path, lambda: seal(tmp_path))
    assert abandoned(tmp_path) == spools(tmp_path) != []
    (one,) = recover(tmp_path)
    assert (one.problem, one.info.step, one.info.verified) == ("", 3, True)
    with open_checkpoint(one.info.path) as file:
        file.verify()
        assert (file["model.weight"][...] == WEIGHTS.numpy()).all()
    assert spools(tmp_path) == recover(tmp_path) == abandoned(tmp_path) == []


def test_one_that_is_not_sealed_holds_nothing_and_goes(tmp_path):
    def begin_anew() -> None:
        arena, job = staged(tmp_path)
        arena.seal(job)
        arena.unseal()  # the next snapshot is being copied, or this one is committed

    killed(tmp_path, begin_anew)
    (one,) = recover(tmp_path)
    assert (one.info, one.problem) == (None, "")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_was_committed_before_is_not_written_again(tmp_path):
    killed(tmp_path, lambda: seal(tmp_path))
    os.link(spools(tmp_path)[0], tmp_path / "copy")
    (first,) = recover(tmp_path)
    before = first.info.path.stat()
    os.rename(tmp_path / "copy", tmp_path / ".spool-copy")  # as if the recovery had died before it removed it
    (second,) = recover(tmp_path)
    assert (second.info.filename, second.problem) == (first.info.filename, "")
    assert first.info.path.stat().st_ino == before.st_ino
    assert spools(tmp_path) == []


@pytest.mark.parametrize("place", [0, 20, 4096 + 1000, -5])
def test_a_spool_that_lost_power_is_never_taken_for_a_checkpoint(tmp_path, place):
    killed(tmp_path, lambda: seal(tmp_path))
    (path,) = spools(tmp_path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    (one,) = recover(tmp_path)
    assert one.info is None
    assert list(tmp_path.iterdir()) == []
    assert ("lost power" in one.problem) == (place not in {0, 20})  # a damaged header seals nothing


def test_a_spool_that_was_cut_short_is_no_trap(tmp_path):
    killed(tmp_path, lambda: seal(tmp_path))
    os.truncate(spools(tmp_path)[0], 9000)
    (one,) = recover(tmp_path)
    assert "lost power" in one.problem


def test_one_that_cannot_be_committed_now_stays_for_a_later_try(tmp_path):
    killed(tmp_path, lambda: seal(tmp_path))
    in_the_way = tmp_path / "checkpoint_s_3.milepost"
    in_the_way.write_bytes(b"somebody else's")
    (one,) = recover(tmp_path)
    assert "exists already" in one.problem
    assert in_the_way.read_bytes() == b"somebody else's"
    in_the_way.unlink()
    (one,) = recover(tmp_path)
    assert one.info.step == 3


def test_what_belongs_to_another_run_is_left_to_that_one(tmp_path):
    killed(tmp_path, lambda: seal(tmp_path))
    assert recover(tmp_path, experiment_id="another") == []
    assert [one.info.step for one in recover(tmp_path, experiment_id="run")] == [3]


def test_the_folder_may_have_moved_and_no_file_outside_of_it_is_read(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    secret = tmp_path / "secret.rank1"
    secret.write_text("{}")
    before.mkdir()
    killed(before, lambda: seal(before, side_files=[str(secret)]))
    before.rename(after)
    (one,) = recover(after)
    assert one.info.path == after / "checkpoint_s_3.milepost"
    assert b"secret" not in one.info.path.read_bytes()
    assert secret.exists()


def test_the_owner_who_leaves_in_order_leaves_nothing(tmp_path):
    config = ExperimentConfig(checkpoint_dir=str(tmp_path), staging="spool")
    checkpointer = ModelCheckpointer(config)
    os.stat(checkpointer.save_checkpoint(torch.nn.Linear(100, 100), step=1))
    checkpointer.wait()
    assert len(spools(tmp_path)) == 1
    checkpointer._writer.arena().close()
    assert spools(tmp_path) == []


def test_a_forked_child_neither_owns_nor_removes_the_spool(tmp_path):
    arena, job = staged(tmp_path)
    child = os.fork()
    if child == 0:
        arena.close()
        os._exit(0 if abandoned(tmp_path) == [] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(spools(tmp_path)) == 1
    arena.seal(job)
    ours, theirs = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(theirs, b"x")
        signal.pause()
    os.read(ours, 1)
    arena.segment.map.close()
    os.close(arena.segment.fd)
    try:
        assert [one.info.step for one in recover(tmp_path)] == [3]
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        os.close(ours)
        os.close(theirs)


def test_a_folder_that_takes_no_spool_is_an_error_with_a_cure_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="making the spool") as raised:
        SpoolSegment.create_in(tmp_path / "file", 1 << 20)
    assert raised.value.cure
    with pytest.raises(StorageError):
        SpoolSegment.create_in(tmp_path, 1 << 60)
    assert spools(tmp_path) == []
