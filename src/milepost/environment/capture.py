"""What did the training run on: which Python, packages, machine, devices, job?

Two halves. :func:`trainer_facts` runs in the training process and takes microseconds: it notes what only that process
knows. :func:`capture` runs in the companion, whose time nobody waits for, and looks at everything else. What cannot be
found out is recorded as absent; nothing here fails a run.
"""

from __future__ import annotations

import csv
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milepost.environment.scheduler import job_identity, times_requeued
from milepost.environment.secrets import redact_arguments, redact_tree

__all__ = ["TrainerFacts", "capture", "trainer_facts"]

_PATIENCE = 10.0  # seconds for nvidia-smi, which can hang on a broken driver

#: Only these variables are kept: the rest of an environment is full of secrets and of no use to others.
_VARIABLES = re.compile(
    "(?:SLURM|NCCL|CUDA|CUBLAS|CUDNN|HIP|ROCR|OMP|MKL|PYTORCH|TORCHELASTIC|TORCHINDUCTOR|TORCHDYNAMO|XLA)_[A-Z0-9_]+"
    "|TORCH_(?:HOME|LOGS|COMPILE_DEBUG|DISTRIBUTED_DEBUG|NCCL_[A-Z_]+|CUDNN_[A-Z0-9_]+|BLAS_[A-Z_]+)"
    "|LSB_(?:JOBID|JOBINDEX|JOBNAME|QUEUE)|PBS_(?:JOBID|JOBNAME|QUEUE|ARRAY_INDEX)"
    "|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_ADDR|MASTER_PORT"
    "|PYTHONHASHSEED|PYTHONPATH|LD_PRELOAD|MALLOC_CONF|TOKENIZERS_PARALLELISM|NVIDIA_TF32_OVERRIDE"
    "|HF_HOME|HF_HUB_OFFLINE|HF_DATASETS_OFFLINE|TRANSFORMERS_OFFLINE|CONDA_DEFAULT_ENV|VIRTUAL_ENV"
)
_NEVER = re.compile(".*_JWT")  # slurmctld's token; its name would match above


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFacts:
    """What only the training process knows.

    Attributes:
        python: Version, as ``3.11.7``.
        implementation: ``CPython``, ...
        executable: Path of the interpreter.
        arguments: The whole command line, of the interpreter too. Not yet redacted: :func:`capture` does it.
        cwd: Working folder at the start; empty if it is gone.
        script: Path of the script or module that runs; empty in an interactive session.
        packages_path: Where the process looks for packages.
        torch: Version of torch, and of what it was built for; empty if torch is not loaded, or built without.
        cuda: See ``torch``.
        rocm: See ``torch``.
        variables: Those environment variables of it that are kept; a companion's own differ.
        job: See :func:`milepost.environment.scheduler.job_identity`.
    """

    python: str
    implementation: str
    executable: str
    arguments: tuple[str, ...]
    cwd: str
    script: str
    packages_path: tuple[str, ...]
    torch: str
    cuda: str
    rocm: str
    variables: Mapping[str, str]
    job: str | None


def trainer_facts(environ: Mapping[str, str] = os.environ) -> TrainerFacts:
    """Note what only this process knows. Takes microseconds and never imports torch."""
    cwd = ""
    with suppress(OSError):
        cwd = os.getcwd()
    script = getattr(sys.modules.get("__main__"), "__file__", None) or "<none>"
    version = sys.modules.get("torch.version")
    return TrainerFacts(
        python=".".join(map(str, sys.version_info[:3])),
        implementation=sys.implementation.name,
        executable=sys.executable or "",
        arguments=tuple(sys.orig_argv),
        cwd=cwd,
        script="" if script.startswith("<") else os.path.join(cwd, script),
        packages_path=tuple(sys.path),
        torch=str(getattr(version, "__version__", None) or ""),
        cuda=str(getattr(version, "cuda", None) or ""),
        rocm=str(getattr(version, "hip", None) or ""),
        variables=_variables(environ),
        job=job_identity(environ),
    )


def capture(facts: TrainerFacts) -> dict[str, Any]:
    """Everything about the surroundings of a run, redacted, ready for ``metadata.json``.

    Args:
        facts: From the training process.

    Returns:
        Plain values. What was not found has the key ``"absent"`` with the reason, or is None.
    """
    found = {
        "python_version": facts.python,
        "python_implementation": facts.implementation,
        "executable": facts.executable,
        "arguments": redact_arguments(facts.arguments),
        "cwd": facts.cwd,
        "script": facts.script,
        "pytorch_version": facts.torch or None,
        "cuda_version": facts.cuda or None,
        "rocm_version": facts.rocm or None,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu(),
        "memory": _memory(),
        "gpu": _gpu(),
        "variables": dict(facts.variables),
        "job": facts.job,
        "times_requeued": times_requeued(facts.variables),
    }
    # Names of packages say nothing about their versions, so PyJWT's is none of a secret.
    return {**redact_tree(found), "packages": _packages(facts.packages_path)}


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in sorted(environ) if _VARIABLES.fullmatch(name) and not _NEVER.match(name)}


def _packages(path: Iterable[str]) -> dict[str, str]:
    """Name and version of every installed package; read from their metadata, nothing of them is imported."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=[part or os.curdir for part in path]):
        with suppress(OSError, ValueError, KeyError):  # one package with broken files does not hide the others
            name, version = distribution.metadata["Name"], distribution.version
            if name and version:
                versions.setdefault(name, version)  # the first on the path is the one that is imported
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _cpu() -> dict[str, Any]:
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": _cpu_model(),
        "architecture": platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable_threads": usable,
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory() -> dict[str, int]:
    import psutil

    return {"total_bytes": psutil.virtual_memory().total}


def _gpu() -> dict[str, Any]:
    """Driver and devices of the machine; which of them the training may use stands in ``CUDA_VISIBLE_DEVICES``."""
    found = _gpu_from_nvml() or _gpu_from_command()
    return found if found is not None else {"absent": "neither NVML nor nvidia-smi answered", "devices": []}


def _gpu_from_nvml() -> dict[str, Any] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            return {
                "driver_version": pynvml.nvmlSystemGetDriverVersion(),
                "devices": [
                    {"name": pynvml.nvmlDeviceGetName(h), "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(h).total}
                    for h in handles
                ],
            }
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _gpu_from_command() -> dict[str, Any] | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    question = [command, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            question, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE, check=True, text=True
        )
        rows = [(driver, name, int(mebibytes)) for driver, name, mebibytes in _rows(answer.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if not rows:
        return None
    return {
        "driver_version": rows[0][0],
        "devices": [{"name": name, "memory_bytes": mebibytes << 20} for _, name, mebibytes in rows],
    }


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
