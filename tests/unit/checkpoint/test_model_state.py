from __future__ import annotations

import pytest
import torch
from torch import nn

from milepost.checkpoint.model_state import capture_model, describe_model, named_modules
from milepost.core.errors import InvalidInputError


def test_names_are_those_of_the_state_dict() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.BatchNorm1d(2), nn.LSTM(2, 2))})

    assert list(capture_model(model)) == list(model.state_dict())
    assert [path for path, module in named_modules(model) if module is shared] == ["a", "b.0"]


def test_buffers_that_do_not_persist_are_left_out() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("kept", torch.ones(1))
    model.register_buffer("scratch", torch.ones(1), persistent=False)
    model.register_buffer("absent", None)
    model.register_parameter("none", None)

    assert list(capture_model(model)) == ["weight", "bias", "kept"]


def test_parametrised_weights_are_kept() -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))

    assert list(capture_model(model)) == list(model.state_dict())


class Packed(nn.Module):
    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}packed"] = torch.ones(1)


class FullyShardedDataParallel(nn.Module):
    """Recognised by its name, so that torch's FSDP need not be imported."""


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (Packed(), r"model\.0\.packed: state that Packed keeps outside parameters and buffers"),
        (FullyShardedDataParallel(), r"model\.0: a sharded FullyShardedDataParallel cannot be saved"),
    ],
)
def test_a_module_that_would_come_back_different_is_refused_by_its_place(module: nn.Module, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        capture_model(nn.Sequential(module))


def test_a_model_is_described_with_tied_weights_counted_once() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10).bfloat16())
    model[1].bias.requires_grad_(requires_grad=False)
    tied = nn.ModuleList([model[0], torch.compile(model, backend="eager")])

    assert describe_model(tied) == {
        "class": "ModuleList",
        "parameters": 210,
        "trainable": 200,
        "parameter_bytes": 400 + 220,
        "dtypes": {"float32": 100, "bfloat16": 110},
    }
