from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from milepost.environment.capture import capture, trainer_facts


def test_facts_name_the_program_and_do_not_import_torch() -> None:
    code = (
        "import json, sys, dataclasses; from milepost.environment.capture import trainer_facts; "
        "facts = trainer_facts({}); assert 'torch' not in sys.modules; print(json.dumps(dataclasses.asdict(facts)))"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "--lr", "0.1"]
    facts = json.loads(subprocess.run(command, check=True, env=environ, capture_output=True).stdout)
    assert facts["python"] == "{}.{}.{}".format(*sys.version_info)
    assert facts["arguments"] == command
    assert (facts["script"], facts["torch"]) == ("", "")
    assert facts["cwd"] == os.getcwd()


def test_the_version_of_torch_is_read_where_it_is_loaded() -> None:
    torch = pytest.importorskip("torch")
    assert trainer_facts().torch == torch.__version__
    assert trainer_facts().cuda == (torch.version.cuda or "")


def test_everything_is_plain_and_what_is_absent_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = capture(replace(trainer_facts({}), torch="", cuda=""))
    assert json.loads(json.dumps(found)) == found
    assert found["pytorch_version"] is None
    assert found["cuda_version"] is None
    assert found["packages"]["numpy"]
    assert found["cpu"]["usable_threads"] >= 1
    assert found["memory"]["total_bytes"] > 2**20
    assert found["job"] is None
    if "absent" in found["gpu"]:
        assert found["gpu"]["devices"] == []


def test_only_variables_on_the_list_are_kept() -> None:
    wanted = {"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1", "PYTHONHASHSEED": "0", "NCCL_DEBUG": "INFO"}
    others = {"HF_TOKEN": "x", "SLURM_JWT": "y", "MY_SETTING": "z", "HOME": "/root", "TORCH_PASSWORD": "p"}
    found = capture(trainer_facts(wanted | others))
    assert found["variables"] == wanted
    assert found["job"] == "slurm:7"


def test_the_first_package_on_the_path_counts_and_broken_ones_do_not_hide_it(tmp_path: Path) -> None:
    for place, name, content in [
        ("a", "PyJWT-2.0.dist-info", "Name: PyJWT\nVersion: 2.0\n"),
        ("a", "broken-1.dist-info", "\n"),
        ("b", "PyJWT-1.0.dist-info", "Name: PyJWT\nVersion: 1.0\n"),
        ("b", "other-1.0.dist-info", "Name: other\nVersion: 1.0\n"),
    ]:
        folder = tmp_path / place / name
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(content)
    (tmp_path / "a" / "latin-1.dist-info").mkdir()
    (tmp_path / "a" / "latin-1.dist-info" / "METADATA").write_bytes(b"Name: \xff\n")
    facts = replace(trainer_facts(), packages_path=(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "gone")))
    assert capture(facts)["packages"] == {"other": "1.0", "PyJWT": "2.0"}


@pytest.mark.parametrize(
    ("answer", "devices"),
    [
        ("echo '560.35, NVIDIA H100, 81559'; echo '560.35, NVIDIA H100, 81559'", 2),
        ("echo 'Failed to initialize NVML'; exit 9", 0),
        ("echo 'something, else'", 0),
    ],
)
def test_devices_are_read_from_nvidia_smi(
    answer: str, devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{answer}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gpu = capture(trainer_facts())["gpu"]
    assert len(gpu["devices"]) == devices
    if devices:
        assert gpu["driver_version"] == "560.35"
        assert gpu["devices"][0] == {"name": "NVIDIA H100", "memory_bytes": 81559 << 20}
    else:
        assert gpu["absent"]
