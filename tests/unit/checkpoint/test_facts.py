"""What decides whether the same numbers come out is recorded, compared, and never set."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.facts import differing_facts, facts_of
from milepost.checkpoint.tree import decode_tree, encode_tree


def facts(model: nn.Module | None = None) -> dict[str, object]:
    return facts_of(TrainingObjects(model=model or nn.Linear(1, 1)))


@pytest.fixture
def _settings() -> Iterator[None]:
    threads, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.usefixtures("_settings")
def test_each_setting_that_differs_is_named_in_one_sentence() -> None:
    before = facts()
    assert differing_facts(before, facts()) == []

    torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(mode=True)

    sentences = differing_facts(before, facts())
    assert "not bit-exact for sure: backends.cudnn.benchmark was False, is True" in sentences
    assert "not bit-exact for sure: are_deterministic_algorithms_enabled was False, is True" in sentences
    assert "not bit-exact for sure: utils.deterministic.fill_uninitialized_memory was True, is False" in sentences
    assert any("get_num_threads" in sentence for sentence in sentences)
    assert len(sentences) == 4


def test_variables_of_the_environment_are_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    assert differing_facts(before, facts()) == ["not bit-exact for sure: CUBLAS_WORKSPACE_CONFIG was None, is :4096:8"]


def test_frozen_parameters_and_modules_in_another_mode_are_named() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(1)))
    before = facts(model)
    model[0].weight.requires_grad_(requires_grad=False)
    model[2].eval()

    found = facts(model)

    assert found["frozen"] == ["0.weight"]
    assert found["other_mode"] == ["2", "2.0"]
    assert len(differing_facts(before, found)) == 2


def test_a_model_that_is_evaluated_as_a_whole_is_in_no_other_mode() -> None:
    assert facts(nn.Sequential(nn.Dropout()).eval())["other_mode"] == []


def test_a_dtype_that_holds_for_a_block_only_is_no_fact() -> None:
    before = facts()
    assert before["autocast_dtype.cpu"] == "torch.bfloat16"
    with torch.autocast("cpu", torch.float16):
        assert differing_facts(before, facts()) == []


def test_facts_survive_a_checkpoint() -> None:
    found = facts()

    kept = decode_tree(json.loads(json.dumps(encode_tree(found, leaf=lambda _: None))), leaf=lambda _: None)

    assert kept == found


def test_facts_of_another_version_are_not_compared() -> None:
    assert differing_facts({"no longer known": 1}, facts()) == []


def test_precision_set_by_the_newer_names_of_torch_is_read_by_them() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the older names only")
    code = """
import warnings; warnings.simplefilter("error")
import torch
from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.facts import facts_of
torch.backends.cuda.matmul.fp32_precision = "tf32"  # from here on torch refuses to tell the older ones
print(facts_of(TrainingObjects(model=torch.nn.Linear(1, 1)))["backends.cuda.matmul.fp32_precision"])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (said.stdout.strip(), said.stderr) == ("tf32", "")
