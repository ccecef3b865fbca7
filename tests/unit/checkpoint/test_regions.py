"""Memory that is not all there at once is asked for when it is needed, and let go."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from milepost.checkpoint.codec import BLOCK_BYTES, Bytes
from milepost.checkpoint.commit import commit, verify
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.regions import lay_out, sample_of
from milepost.core.errors import InvalidCallError
from tests.unit.checkpoint.container_samples import make_job, stage


class Pieces:
    """A snapshot's memory, given in copies; counts how many bytes of them are alive."""

    def __init__(self, arena: memoryview) -> None:
        self._memory = np.frombuffer(arena, np.uint8)
        self._lock = threading.Lock()
        self.asked: list[tuple[int, int]] = []
        self.alive = 0
        self.most = 0

    def bytes_of(self, start: int, end: int) -> Bytes:
        with self._lock:
            self.asked.append((start, end))
            self.alive += end - start
            self.most = max(self.most, self.alive)
        return Copy(self, self._memory[start:end])


class Copy(np.ndarray[Any, Any]):
    """A copy that tells its owner when it is gone."""

    def __new__(cls, owner: Pieces, memory: Bytes) -> Self:
        made = memory.copy().view(cls)
        made.owner = owner
        return made

    def __array_finalize__(self, other: Any) -> None:
        self.owner: Any = None

    def __del__(self) -> None:
        if self.owner is not None:
            with self.owner._lock:
                self.owner.alive -= len(self)


@pytest.mark.parametrize("compression", [True, False])
def test_a_state_is_written_piece_by_piece(tmp_path: Path, compression: bool) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"w{i}": generator.standard_normal(BLOCK_BYTES // 2).astype(np.float32) for i in range(12)}
    arrays |= {f"b{i}": generator.standard_normal(10).astype(np.float32) for i in range(5)} | {"none": np.zeros((0, 3))}
    entries, arena = stage(arrays)
    pieces = Pieces(arena)
    path = tmp_path / "checkpoint_1.milepost"
    info = commit(make_job(path, entries, arena, compression=compression), pieces, threads=2)
    verify(path)
    with open_checkpoint(path) as file:
        assert {n: a.tobytes() for n, a in file.read_all().items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert info.state_bytes == sum(array.nbytes for array in arrays.values())
    starts = {entry.offset: entry.offset + entry.nbytes for entry in entries}
    assert all(starts[start] == end for start, end in pieces.asked)
    assert pieces.alive == 0
    assert pieces.most <= 4 * arrays["w0"].nbytes


def test_windows_of_one_storage_are_one_piece() -> None:
    [entry], arena = stage({"w": np.arange(40_000, dtype=np.float32)})
    row = replace(entry, name="row", shape=(100,), offset=entry.offset + 400, nbytes=400)
    pieces = Pieces(arena)
    layout = lay_out([entry, row], pieces)
    assert layout.places == [(0, 0), (0, 400)]
    assert layout.sources[0].content().tobytes() == arena.tobytes()[: entry.nbytes]
    assert pieces.asked == [(entry.offset, entry.offset + entry.nbytes)]


def test_other_formats_need_the_whole_snapshot(tmp_path: Path) -> None:
    entries, arena = stage({"w": np.zeros(10, np.float32)})
    with pytest.raises(InvalidCallError, match="piece by piece"):
        commit(make_job(tmp_path / "checkpoint_1.pt", entries, arena, format="pt"), Pieces(arena))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("nbytes", "width"), [(0, 4), (3, 1), (40, 8), (1 << 20, 4), (BLOCK_BYTES, 2)])
def test_a_sample_is_from_the_middle_in_whole_numbers(nbytes: int, width: int) -> None:
    block = (np.arange(nbytes) // width % 251).astype(np.uint8)
    sample = sample_of(block, width)
    assert len(sample) == min(nbytes, 64 << 10)
    assert len(sample) % width == 0
    assert all(len(set(number)) == 1 for number in sample.reshape(-1, width).tolist())
