"""Rot in a checkpoint, or in the keyframe it needs, is refused by name or harmless, never taken for data."""

from __future__ import annotations

from pathlib import Path

from torture.rot_everywhere import every_bit, every_length, random_bits, trio

from milepost.checkpoint.reading import open_checkpoint


def test_flipped_bits_and_lengths_of_small_files(tmp_path: Path) -> None:
    files = trio(tmp_path, large=False)
    with open_checkpoint(files.differences) as file:
        assert file.info.base == files.keyframe.name
    assert set(every_bit(files, each=151)) == {"refused", "harmless"}
    assert set(every_length(files, each=67)) == {"refused"}


def test_random_bits_of_large_files(tmp_path: Path) -> None:
    outcomes = random_bits(trio(tmp_path, large=True), seed=0, count=8)
    assert set(outcomes) <= {"refused", "harmless"}
    assert outcomes["refused"] > 0
