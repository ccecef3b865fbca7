"""An export holds what the checkpoint holds, in the words of its readers, and never takes the place of anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.export import Format, export
from milepost.checkpoint.loading import load, load_state, open_checkpoint
from milepost.checkpoint.restore import resume_objects
from milepost.core.config import ExperimentConfig
from milepost.core.errors import ConflictError, CorruptDataError, InvalidCallError, InvalidInputError, NotFoundError

FILES: tuple[Format, ...] = ("milepost", "pt", "pt.gz", "safetensors")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(40, 40)
        self.second = nn.Linear(40, 40, bias=False)
        self.second.weight = self.first.weight
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.narrow = nn.Parameter(torch.randn(7).bfloat16())
        self.empty = nn.Parameter(torch.zeros(0, 3))


def saved(folder: Path, model: nn.Module | None = None, **settings: Any) -> Path:
    model = model or Net()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    saver = ModelCheckpointer(ExperimentConfig(root=str(folder), **settings))
    path = saver.save_checkpoint(model, optimizer, step=7, epoch=2, metrics={"loss": 0.5}, extra={"seen": {1, 2}})
    saver.wait()
    return Path(str(path))


def assert_equal(one: Any, other: Any, place: str = "state") -> None:
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), place
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{place}[{index}]")
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), place
    else:
        assert one == other, place


@pytest.mark.parametrize("source", FILES)
@pytest.mark.parametrize("kind", FILES)
def test_an_export_holds_the_same_state(tmp_path: Path, source: Format, kind: Format) -> None:
    path = saved(tmp_path, checkpoint_format=source)
    target = tmp_path / "away" / f"export.{kind}"

    assert export(path, target, format=kind) == target

    before, after = load_state(path), load_state(target)
    assert_equal(after.state, before.state)
    assert after.state["model"]["second.weight"] is after.state["model"]["first.weight"]
    assert (after.info.step, after.info.epoch, after.info.metrics, after.info.format) == (7, 2, {"loss": 0.5}, kind)
    assert [file.name for file in target.parent.iterdir()] == [target.name]


def test_a_training_goes_on_from_an_export(tmp_path: Path) -> None:
    path = saved(tmp_path)
    target = export(path, tmp_path / "export.safetensors", format="safetensors")
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())

    resume_objects(target, model, optimizer)

    assert torch.equal(model.first.weight, load(path)["model"]["first.weight"])


@pytest.mark.parametrize("kind", FILES)
def test_an_export_can_be_a_part(tmp_path: Path, kind: Format) -> None:
    path = saved(tmp_path)

    target = export(path, tmp_path / f"part.{kind}", format=kind, only=["model.first.*", "extra.*"])

    state = load(target)
    assert list(state["model"]) == ["first.weight", "first.bias"]
    assert "optimizer" not in state
    assert state["extra"] == {"seen": {1, 2}}
    with pytest.raises(NotFoundError, match=r"called decoder\.\*"):
        export(path, tmp_path / f"none.{kind}", format=kind, only="decoder.*")


@pytest.mark.parametrize("kind", get_args(Format))
def test_what_exists_is_never_replaced(tmp_path: Path, kind: Format) -> None:
    path = saved(tmp_path)
    target = tmp_path / "there"
    target.write_text("mine")

    with pytest.raises(ConflictError, match="exists already"):
        export(path, target, format=kind)

    assert target.read_text() == "mine"


@pytest.mark.parametrize("kind", FILES)
def test_nothing_is_made_of_a_damaged_checkpoint(tmp_path: Path, kind: Format) -> None:
    path = saved(tmp_path, compression=False)
    with open_checkpoint(path) as file:
        stored = file.tensors["model.first.weight"]
        start = file.manifest.regions[stored.region].blocks[0].offset + stored.offset
    content = bytearray(path.read_bytes())
    content[start + 100] ^= 1
    path.write_bytes(content)
    folder = tmp_path / "away"
    folder.mkdir()

    with pytest.raises(CorruptDataError, match=path.name):
        export(path, folder / f"export.{kind}", format=kind)

    assert list(folder.iterdir()) == []


def test_a_format_that_is_none_and_a_checkpoint_that_is_none_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(InvalidCallError, match="format is 'onnx'"):
        export(path, tmp_path / "x", format="onnx")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        export(tmp_path / "none.milepost", tmp_path / "x", format="safetensors")
    with pytest.raises(InvalidInputError, match="no model with the config of transformers"):
        export(path, tmp_path / "x", format="huggingface")


def test_lossy_moments_have_their_dtype_back_after_every_export(tmp_path: Path) -> None:
    path = saved(tmp_path, compression="bf16-moments")

    for kind in FILES:
        state = load(export(path, tmp_path / f"export.{kind}", format=kind))
        assert state["optimizer"]["state"][2]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["milepost", "safetensors", "huggingface"])
def test_the_formats_that_are_no_pickles_are_written_without_torch(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    path = saved(tmp_path, bert(transformers))
    code = (
        "import sys; from milepost.checkpoint.export import export\n"
        "export(sys.argv[1], sys.argv[2], format=sys.argv[3])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "made"), kind], check=True)

    assert (tmp_path / "made").exists()


def bert(transformers: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertForMaskedLM(config).eval()


@pytest.mark.parametrize("wrapped", [False, True])
def test_from_pretrained_computes_the_same_from_the_folder(tmp_path: Path, wrapped: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model = bert(transformers)
    path = saved(tmp_path, nn.DataParallel(model) if wrapped else model)

    folder = export(path, tmp_path / "bert", format="huggingface")

    loaded = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokens = torch.arange(10).view(2, 5)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    other = bert(transformers)
    ModelCheckpointer(ExperimentConfig(root=str(tmp_path))).load_checkpoint(folder, other)
    assert torch.equal(other(tokens).logits, model(tokens).logits)
    with pytest.raises(ConflictError):
        export(path, folder, format="huggingface")
