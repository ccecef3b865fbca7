"""Which folders of Trainer are called whole?"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from milepost.integrations.huggingface_digests import DIGESTS, keep_digests
from milepost.integrations.huggingface_folders import inspect_folder, newest_checkpoint
from tests.contract.huggingface_training import samples, tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Trainer, TrainingArguments

    out = tmp_path_factory.mktemp("trained")
    args = TrainingArguments(
        str(out), max_steps=2, save_steps=1, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True
    )
    Trainer(tiny_model(), args, train_dataset=samples()).train()
    return out


@pytest.fixture
def out(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "out"))


def test_the_folder_of_the_largest_step_is_found_whatever_its_name_sorts_to(out: Path) -> None:
    shutil.copytree(out / "checkpoint-2", out / "checkpoint-10")
    state = json.loads((out / "checkpoint-10" / "trainer_state.json").read_text())
    (out / "checkpoint-10" / "trainer_state.json").write_text(json.dumps(state | {"global_step": 10}))
    (out / "checkpoint-final").mkdir()
    assert newest_checkpoint(out) == str(out / "checkpoint-10")


def test_there_is_none_in_a_folder_that_is_empty_or_not_there(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


def test_a_folder_that_ends_after_any_of_its_files_is_left_out_and_named(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = out / "checkpoint-2"
    names = sorted(path.name for path in newest.iterdir() if path.name != "config.json")
    assert len(names) >= 6
    for name in names:
        content = (newest / name).read_bytes()
        (newest / name).unlink()
        assert newest_checkpoint(out) == str(out / "checkpoint-1"), name
        assert name in capsys.readouterr().err
        (newest / name).write_bytes(content)
    assert newest_checkpoint(out) == str(newest)


def test_a_file_that_is_cut_anywhere_or_was_never_filled_is_noticed(out: Path) -> None:
    newest = out / "checkpoint-2"
    for path in sorted(newest.iterdir()):
        content = path.read_bytes()
        for kept in (0, 1, 8, len(content) // 3, len(content) - 64, len(content) - 1):
            if path.suffix == ".json" and not content[kept:].strip():
                continue
            path.write_bytes(content[:kept])
            assert newest_checkpoint(out) == str(out / "checkpoint-1"), (path.name, kept)
        path.write_bytes(bytes(len(content)))
        assert newest_checkpoint(out) == str(out / "checkpoint-1"), path.name
        path.write_bytes(content)
    assert newest_checkpoint(out) == str(newest)


def test_a_flipped_bit_in_what_torch_wrote_is_noticed_by_its_checksum(out: Path) -> None:
    path = out / "checkpoint-2" / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert newest_checkpoint(out) == str(out / "checkpoint-1")


def test_with_digests_a_flipped_bit_anywhere_is_noticed(out: Path) -> None:
    newest = out / "checkpoint-2"
    keep_digests(newest)
    assert inspect_folder(newest).step == 2
    for path in sorted(newest.iterdir()):
        if path.name == DIGESTS:
            continue
        content, times = path.read_bytes(), path.stat()
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a disk that rots does not say when
        assert newest_checkpoint(out) == str(out / "checkpoint-1"), path.name
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_digests_of_an_earlier_save_accuse_no_file_that_was_written_since(out: Path) -> None:
    newest = out / "checkpoint-2"
    keep_digests(newest)
    for name in ("model.safetensors", "optimizer.pt"):
        (newest / name).write_bytes((out / "checkpoint-1" / name).read_bytes())
    assert newest_checkpoint(out) == str(newest)


def test_a_state_of_another_step_belongs_to_another_folder(out: Path) -> None:
    state = (out / "checkpoint-1" / "trainer_state.json").read_bytes()
    (out / "checkpoint-2" / "trainer_state.json").write_bytes(state)
    assert newest_checkpoint(out) == str(out / "checkpoint-1")


def test_an_index_whose_shard_is_missing_is_noticed(out: Path) -> None:
    newest = out / "checkpoint-2"
    (newest / "model.safetensors").rename(newest / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (newest / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert newest_checkpoint(out) == str(out / "checkpoint-1")
    (newest / "model-00002-of-00002.safetensors").write_bytes(
        (newest / "model-00001-of-00002.safetensors").read_bytes()
    )
    assert newest_checkpoint(out) == str(newest)
