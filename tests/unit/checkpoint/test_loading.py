from __future__ import annotations

import argparse
import gzip
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import milepost
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.loading import load, load_state, open_checkpoint
from milepost.core.config import ExperimentConfig
from milepost.core.errors import CorruptDataError, InvalidCallError, InvalidInputError, NotFoundError

FORMATS = ("milepost", "pt", "pt.gz", "safetensors")


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(40, 40), nn.BatchNorm1d(40))
        self.head = nn.Linear(40, 40, bias=False)
        self.head.weight = self.encoder[0].weight


def saved(folder: Path, kind: str = "milepost", **more: Any) -> tuple[Tagger, torch.optim.Optimizer, Path]:
    model = Tagger()
    optimizer = torch.optim.AdamW(model.parameters())
    model.head(model.encoder(torch.randn(4, 40))).sum().backward()
    optimizer.step()
    saver = ModelCheckpointer(ExperimentConfig(root=str(folder), checkpoint_format=kind))  # type: ignore[arg-type]
    path = saver.save_checkpoint(model, optimizer, step=5, epoch=2, metrics={"loss": float("nan")}, **more)
    saver.wait()
    return model, optimizer, path


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("kind", FORMATS)
def test_load_gives_dicts_that_torch_takes(tmp_path: Path, kind: str) -> None:
    model, optimizer, path = saved(tmp_path, kind)
    state = milepost.load(path)
    fresh = Tagger()
    fresh.load_state_dict(state["model"])
    other = torch.optim.AdamW(fresh.parameters())
    other.load_state_dict(state["optimizer"])

    assert_equal(dict(fresh.state_dict()), dict(model.state_dict()))
    for parameter, mine in zip(fresh.parameters(), model.parameters(), strict=True):
        assert_equal(dict(other.state[parameter]), dict(optimizer.state[mine]))


@pytest.mark.parametrize("kind", FORMATS)
def test_only_what_matches_is_given(tmp_path: Path, kind: str) -> None:
    _, _, path = saved(tmp_path, kind)

    assert list(load(path, only="model.encoder.0.*")) == ["model"]
    assert list(load(path, only="model.encoder.0.*")["model"]) == ["encoder.0.weight", "encoder.0.bias"]
    found = load(path, only=["optimizer.state.encoder.1.weight.exp_avg*", "model.head.*"])
    assert list(found["model"]) == ["head.weight"]
    assert [list(state) for state in found["optimizer"]["state"].values()] == [["exp_avg", "exp_avg_sq"]]


def test_only_what_matches_is_read(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path, extra={"large": torch.randn(100_000)})
    with open_checkpoint(path) as file:
        tensor = file.tensors["extra.large"]
        start = file.manifest.regions[tensor.region].blocks[0].offset
    content = bytearray(path.read_bytes())
    content[start] ^= 1
    path.write_bytes(content)

    load(path, only="model.*")
    with pytest.raises(CorruptDataError, match=r"extra\.large"):
        load(path)


def test_nothing_that_matches_is_an_error(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path)
    with pytest.raises(NotFoundError, match=r"called decoder\.\*"):
        load(path, only="decoder.*")


def test_tied_weights_are_stored_once_and_loaded_under_both_names(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path)
    with open_checkpoint(path) as file:
        names = [name for name in file.tensors if name.startswith("model.")]

    assert "model.head.weight" not in names
    state = load(path)["model"]
    assert state["head.weight"] is state["encoder.0.weight"]


def test_containers_of_extra_state_keep_their_types_and_their_tensors(tmp_path: Path) -> None:
    extra = {
        "options": argparse.Namespace(mask=torch.arange(3), rate=0.5),
        "recent": deque([torch.ones(2)], maxlen=4),
        "ordered": OrderedDict(b=1, a=2),
        "table": np.arange(2000.0),
        1: (torch.zeros(()), None),
    }
    _, _, path = saved(tmp_path, extra={"all": extra})

    loaded = load(path)["extra"]["all"]

    assert torch.equal(loaded["options"].mask, torch.arange(3))
    assert loaded["recent"].maxlen == 4
    assert torch.equal(loaded["recent"][0], torch.ones(2))
    assert isinstance(loaded["ordered"], OrderedDict)
    assert list(loaded["ordered"]) == ["b", "a"]
    assert isinstance(loaded["table"], np.ndarray)
    assert np.array_equal(loaded["table"], extra["table"])
    assert torch.equal(loaded[1][0], torch.zeros(()))


def test_the_record_of_a_foreign_file_is_whole(tmp_path: Path) -> None:
    _, _, path = saved(tmp_path, "safetensors", is_best=True)
    info = load_state(path).info

    assert (info.step, info.epoch, info.is_best, info.format) == (5, 2, True, "safetensors")
    assert info.metrics["loss"] != info.metrics["loss"]
    assert info.state_bytes > 4 * 40 * 40 * 3


def test_files_of_strangers_are_read(tmp_path: Path) -> None:
    model = Tagger()
    wrapped = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model_state_dict": wrapped, "epoch": 3}, tmp_path / "theirs.pt")
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    with gzip.open(tmp_path / "packed.pt.gz", "wb") as file:
        torch.save({"state_dict": model.state_dict()}, file)

    for name in ("theirs.pt", "bare.pth", "packed.pt.gz"):
        assert_equal(load(tmp_path / name)["model"], dict(model.state_dict()))


def test_a_pickle_with_code_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Trap()}, tmp_path / "trap.pt")

    with pytest.raises(InvalidInputError, match="more than tensors and plain values"):
        load(tmp_path / "trap.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_damage_is_named_in_every_format(tmp_path: Path, kind: str, harm: str) -> None:
    _, _, path = saved(tmp_path, kind)
    content = bytearray(path.read_bytes())
    if harm == "cut":
        del content[len(content) // 2 :]
    else:
        # the first block of a container; in the middle of the file may be padding, which nobody reads
        content[4096 if kind == "milepost" else len(content) // 2] ^= 0x10
    path.write_bytes(content)

    with pytest.raises(CorruptDataError) as caught:
        load(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("kind", ["pt", "pt.gz", "safetensors"])
def test_a_cut_foreign_file_without_its_description_is_damaged_too(tmp_path: Path, kind: str) -> None:
    _, _, path = saved(tmp_path, kind)
    whole = path.read_bytes()
    stranger = tmp_path / f"stranger.{kind}"
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        stranger.write_bytes(whole[:length])
        with pytest.raises(CorruptDataError):
            load(stranger)


def test_a_file_that_is_not_there_and_a_device_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load(tmp_path / "none.milepost")
    _, _, path = saved(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidInputError, match="device 'cuda' is not here"):
            load(path, device="cuda")
    assert load(path, device="cpu")["model"]["head.weight"].device.type == "cpu"


def test_the_package_offers_both_names() -> None:
    assert milepost.load is load
    assert milepost.open_checkpoint is open_checkpoint


def test_tensors_can_lie_in_the_file_and_writing_to_one_never_reaches_it(tmp_path: Path) -> None:
    model = Tagger()
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path), compression=False))
    path = saver.save_checkpoint(model, step=1, extra={"half": torch.ones(9).bfloat16(), "none": torch.zeros(0, 2)})
    saver.wait()
    before = Path(path).read_bytes()

    state = load(path, mapped=True)
    assert_equal(state["model"], dict(model.state_dict()))
    assert torch.equal(state["extra"]["half"], torch.ones(9).bfloat16())
    assert state["model"]["head.weight"] is state["model"]["encoder.0.weight"]
    state["model"]["head.weight"].fill_(5.0)

    assert Path(path).read_bytes() == before
    assert list(load(path, only="model.encoder.0.*", mapped=True)["model"]) == ["encoder.0.weight", "encoder.0.bias"]


@pytest.mark.parametrize("kind", ["milepost", "pt"])
def test_what_cannot_be_mapped_is_refused_with_its_cure(tmp_path: Path, kind: str) -> None:
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path), checkpoint_format=kind))  # type: ignore[arg-type]
    path = saver.save_checkpoint(nn.Linear(300, 300), step=1)
    saver.wait()

    with pytest.raises(InvalidInputError, match="cannot be mapped"):
        load(path, mapped=True)
    with pytest.raises(InvalidCallError, match="mapped=True and a device"):
        load(path, mapped=True, device="cpu")
