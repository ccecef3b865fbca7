"""Files of others are read as they are, and what is made to deceive is refused before it costs memory."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from milepost.checkpoint import torch_file
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.loading import load, load_state
from milepost.checkpoint.strangers import aligned
from milepost.checkpoint.torch_file import notes_on_torch
from milepost.core.config import ExperimentConfig
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError

safetensors = pytest.importorskip("safetensors.torch")


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    return model, optimizer


def load_into(path: Path, model: nn.Module, optimizer: Any = None, **more: Any) -> Any:
    saver = ModelCheckpointer(ExperimentConfig(root=str(path.parent)))
    return saver.load_checkpoint(path, model, optimizer, **more)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


HABITS: list[Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = [
    lambda model, optimizer: {"model_state_dict": model, "optimizer_state_dict": optimizer, "epoch": 3, "step": 9},
    lambda model, optimizer: {"model": model, "optimizer": optimizer, "epoch": 3, "step": 9},
    lambda model, optimizer: {
        "state_dict": {f"net.{name}": value for name, value in model.items()},
        "optimizer_states": [optimizer],
        "lr_schedulers": [],
        "epoch": 3,
        "global_step": 9,
    },
    lambda model, optimizer: {
        "model": {f"module._orig_mod.{name}": value for name, value in model.items()},
        "optimizer": optimizer,
        "epoch": 3,
        "iteration": 9,
    },
]


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".pt.gz"])
def test_a_training_that_others_saved_goes_on(tmp_path: Path, habit: Any, ending: str) -> None:
    model, optimizer = trained()
    path = tmp_path / f"theirs{ending}"
    with gzip.open(path, "wb", 1) if ending.endswith(".gz") else open(path, "wb") as file:
        torch.save(habit(dict(model.state_dict()), optimizer.state_dict()), file)
    other, other_optimizer = trained()

    report = load_into(path, other, other_optimizer)

    assert (report.step, report.epoch, report.missing, report.unexpected) == (9, 3, (), ())
    assert_same_weights(other, model)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(other_optimizer.state[mine]["exp_avg_sq"], optimizer.state[theirs]["exp_avg_sq"])


def test_steps_that_old_torch_counted_in_plain_numbers_become_tensors(tmp_path: Path) -> None:
    model, optimizer = trained()
    content = optimizer.state_dict()
    for state in content["state"].values():
        state["step"] = 1
    torch.save({"model": model.state_dict(), "optimizer": content}, tmp_path / "old.pt")
    other = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    other_optimizer = torch.optim.AdamW(other.parameters())

    load_into(tmp_path / "old.pt", other, other_optimizer)
    other(torch.randn(4, 6)).sum().backward()
    other_optimizer.step()

    assert other_optimizer.state[other[0].weight]["step"].item() == 2.0


def test_safetensors_of_others_are_read_into_live_tensors(tmp_path: Path) -> None:
    model, _ = trained()
    safetensors.save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    other, _ = trained()

    assert load_into(tmp_path / "theirs.safetensors", other).missing == ()
    assert_same_weights(other, model)
    assert list(load(tmp_path / "theirs.safetensors", only="model.0.*")["model"]) == ["0.bias", "0.weight"]


@pytest.mark.parametrize("kind", ["pt", "pt.gz", "safetensors"])
def test_ours_are_read_by_others(tmp_path: Path, kind: Any) -> None:
    model, optimizer = trained()
    saver = ModelCheckpointer(ExperimentConfig(root=str(tmp_path), checkpoint_format=kind))
    path = saver.save_checkpoint(model, optimizer, step=1)
    saver.wait()
    if kind == "safetensors":
        content = safetensors.load_file(path)
    else:
        with gzip.open(path) if kind == "pt.gz" else open(path, "rb") as file:
            content = torch.load(file, weights_only=True)["model"]

    for name, value in model.state_dict().items():
        assert torch.equal(content[name], value)


def shards(folder: Path, model: nn.Module, names: Any = ("model-1.safetensors", "model-2.safetensors")) -> None:
    state = model.state_dict()
    parts = [dict(list(state.items())[:3]), dict(list(state.items())[3:])]
    for name, part in zip(names, parts, strict=True):
        if "/" not in name:
            safetensors.save_file(part, folder / name)
    places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_a_folder_of_hugging_face_is_loaded_whole_sharded_or_old(tmp_path: Path) -> None:
    model, _ = trained()
    for name in ("whole", "sharded", "old"):
        (tmp_path / name).mkdir()
    safetensors.save_file(model.state_dict(), tmp_path / "whole" / "model.safetensors")
    shards(tmp_path / "sharded", model)
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")

    for name in ("whole", "sharded", "old"):
        other, _ = trained()
        assert load_into(tmp_path / name, other).info.format == "huggingface"
        assert_same_weights(other, model)
        assert load(tmp_path / name)["model"].keys() == model.state_dict().keys()
    with pytest.raises(NotFoundError, match="no weights in the folder"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "a/b.safetensors", "..\\x.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    model, _ = trained()
    safetensors.save_file(model.state_dict(), tmp_path / "outside.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    shards(folder, model, ("model-1.safetensors", "x/../" + name))

    with pytest.raises(CorruptDataError, match="no file of weights in its folder"):
        load(folder)


def as_safetensors(header: Any, body: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def described(dtype: str = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(8),
        struct.pack("<Q", 1 << 62) + b"{}",
        as_safetensors(b"[1]"),
        as_safetensors(b'{"a":' * 100_000),
        as_safetensors({"a": described()}, bytes(15)),
        as_safetensors({"a": described()}, bytes(17)),
        as_safetensors({"a": described(shape=(5,))}),
        as_safetensors({"a": described(shape=(-2, -2))}),
        as_safetensors({"a": described(shape=(True, 4))}),
        as_safetensors({"a": described(shape=(1 << 70, 0))}, b""),
        as_safetensors({"a": described(dtype="F7")}),
        as_safetensors({"a": described(offsets=(0, 16)), "b": described(offsets=(8, 24))}, bytes(24)),
        as_safetensors({"a": described(offsets=(8, 24))}, bytes(24)),
        as_safetensors({"a": described() | {"more": 1}}),
        as_safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(described()).encode(),) * 2)),
        as_safetensors({"__metadata__": {"milepost": {}}, "a": described()}),
        as_safetensors({"__metadata__": {"milepost": "{}"}, "a": described()}),
    ],
)
def test_a_forged_safetensors_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "forged.safetensors").write_bytes(content)

    with pytest.raises(CorruptDataError, match="forged"):
        load(tmp_path / "forged.safetensors")


def rewritten(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None], **options: Any) -> Path:
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        change(old, new)
    return target


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.save({"model": {"weight": torch.zeros(50_000)}}, tmp_path / "plain.pt")
    return tmp_path / "plain.pt"


def test_a_zip_that_torch_would_not_write_is_refused(plain: Path) -> None:
    def nothing(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        pass

    def twice(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        new.writestr(old.namelist()[0].upper(), b"x")

    def outside(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        new.writestr("plain/../../x", b"x")

    load(rewritten(plain, nothing))
    for change, options in ((nothing, {"compression": zipfile.ZIP_DEFLATED}), (twice, {}), (outside, {})):
        with pytest.raises(CorruptDataError) as caught:
            load(rewritten(plain, change, **options))
        assert caught.value.kind == "zip-anomaly"


def test_a_zip_whose_headers_disagree_or_that_begins_late_is_refused(plain: Path) -> None:
    whole = plain.read_bytes()
    name = zipfile.ZipFile(plain).namelist()[-1].encode()
    other = whole.replace(name, b"?" * len(name), 1)
    for content in (other, other[:4] + whole[:100] + whole):
        plain.write_bytes(content)
        with pytest.raises(CorruptDataError):
            load(plain)


def test_a_packed_file_is_unpacked_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "_ALWAYS_UNPACKED", 1 << 20)
    content = io.BytesIO()
    torch.save({"model": {"weight": torch.zeros(4_000_000)}}, content)
    (tmp_path / "bomb.pt.gz").write_bytes(gzip.compress(content.getvalue()))

    with pytest.raises(CorruptDataError, match="unpacks to more than"):
        load(tmp_path / "bomb.pt.gz")


def test_a_file_without_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")

    with pytest.raises(InvalidInputError, match="holds a list"):
        load(tmp_path / "list.pt")


def test_a_torch_with_known_holes_is_named() -> None:
    assert notes_on_torch("2.10.0") == notes_on_torch("2.13.0+cpu") == ()
    assert "torch 2.6.0" in notes_on_torch("2.6.0")[0]


def test_names_are_aligned_only_by_what_stands_before_all_of_them() -> None:
    assert aligned({"net.a": 1, "net.b": 2, "loss.w": 3}, ["a", "b"]) == {"a": 1, "b": 2, "loss.w": 3}
    assert aligned({"a": 1, "net.b": 2}, ["a", "b"]) == {"a": 1, "net.b": 2}
    assert aligned({"x": 1}, ["a"]) == {"x": 1}


def test_the_record_of_a_stranger_says_what_is_in_it(tmp_path: Path) -> None:
    model, optimizer = trained()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "theirs.pt")
    info = load_state(tmp_path / "theirs.pt").info

    assert (info.format, info.contents, info.step, info.experiment_id) == ("pt", ("model", "optimizer"), 0, "")
