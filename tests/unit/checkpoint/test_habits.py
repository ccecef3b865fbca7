"""The next save of a state knows what the one before found out, and only as long as it holds."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milepost.checkpoint.codec import BlockCodec
from milepost.checkpoint.commit import commit
from milepost.checkpoint.habits import Habits
from milepost.checkpoint.reading import open_checkpoint
from tests.unit.checkpoint.container_samples import make_job, stage

LARGE = 300_000


def state(seed: int, frozen: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    return {
        "frozen": np.random.default_rng(frozen).standard_normal(LARGE).astype(np.float32),
        "trained": np.random.default_rng(seed).standard_normal(LARGE).astype(np.float32),
    }


class Series:
    """Saves of one run, and how many samples they took."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.habits = Habits()
        self.folder = folder
        self.count = 0
        self.sampled = 0
        plan = BlockCodec.plan

        def counted(codec: BlockCodec, sample: Any, width: int) -> tuple[str, int]:
            self.sampled += 1
            return plan(codec, sample, width)

        monkeypatch.setattr(BlockCodec, "plan", counted)

    def save(self, arrays: dict[str, np.ndarray[Any, Any]]) -> int:
        """Save; returns how many samples were tried for it."""
        before, self.count = self.sampled, self.count + 1
        entries, arena = stage(arrays)
        path = self.folder / f"checkpoint_{self.count}.milepost"
        commit(make_job(path, entries, arena), arena, habits=self.habits)
        with open_checkpoint(path) as file:
            assert {n: a.tobytes() for n, a in file.read_all().items()} == {n: a.tobytes() for n, a in arrays.items()}
        return self.sampled - before


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Series:
    return Series(tmp_path, monkeypatch)


def test_a_plan_serves_ten_saves_and_is_then_found_anew(series: Series) -> None:
    taken = [series.save(state(seed)) for seed in range(12)]
    assert taken == [2, *[0] * 10, 2]


def test_a_tensor_that_takes_more_than_its_plan_promised_is_sampled_again(series: Series) -> None:
    zeros = {"w": np.zeros(LARGE, np.float32)}
    noise = {"w": np.random.default_rng(0).integers(0, 1 << 32, LARGE, np.uint32).view(np.float32)}
    assert [series.save(zeros), series.save(zeros), series.save(noise), series.save(noise)] == [1, 0, 0, 1]


def test_a_tensor_of_another_shape_or_dtype_is_another_tensor(series: Series) -> None:
    series.save({"w": np.zeros(LARGE, np.float32)})
    assert series.save({"w": np.zeros(LARGE + 1, np.float32)}) == 1
    assert series.save({"w": np.zeros(LARGE + 1, np.int32)}) == 1


def test_the_share_of_the_state_that_did_not_change_is_known_from_the_second_save_on(series: Series) -> None:
    series.save(state(1))
    assert series.habits.unchanged is None
    series.save(state(2))
    assert series.habits.unchanged == 0.5
    series.save(state(2))
    assert series.habits.unchanged == 1.0
    series.save(state(3, frozen=4))
    assert series.habits.unchanged == 0.0


def test_a_file_that_had_to_be_written_twice_is_one_save(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    series.save(state(1))
    fsync, failures = os.fsync, [OSError(errno.EIO, "bad disk")]

    def once(fd: int) -> None:
        if failures:
            raise failures.pop()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", once)
    series.save(state(2))
    assert not failures
    assert series.habits.unchanged == 0.5


def test_what_the_last_file_took_is_known(series: Series) -> None:
    assert series.habits.taken is None
    series.save(state(1))
    assert series.habits.taken == (series.folder / "checkpoint_1.milepost").stat().st_size
