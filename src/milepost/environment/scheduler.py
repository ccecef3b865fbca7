"""Which job of a cluster's scheduler is this, and did the scheduler start it again?

All of it is read off environment variables, so every function is pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["is_preemption_signal", "job_identity", "times_requeued"]

#: A pod's name ends in five characters of this alphabet unless its controller gives it a stable name.
_POD_SUFFIX = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{5}$")
_WARNINGS = frozenset({"SIGUSR1", "SIGUSR2", "SIGXCPU"})


def job_identity(environ: Mapping[str, str]) -> str | None:
    """Name of the job and its array task, the same after a requeue; None outside SLURM, LSF, PBS and Kubernetes."""
    return _slurm(environ) or _lsf(environ) or _pbs(environ) or _kubernetes(environ)


def times_requeued(environ: Mapping[str, str]) -> int:
    """How often the scheduler started this job again: evidence that the attempt before was preempted."""
    count = environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isascii() and count.isdigit() else 0


def is_preemption_signal(name: str, environ: Mapping[str, str]) -> bool:
    """Whether the signal is the scheduler's warning that the job's time here ends.

    Inside a job nobody but the scheduler sends SIGUSR1, SIGUSR2 or SIGXCPU (``sbatch --signal``, ``bsub -wa``). SIGTERM
    is no evidence: a person's ``scancel`` sends it too.
    """
    return name in _WARNINGS and job_identity(environ) is not None


def _slurm(environ: Mapping[str, str]) -> str | None:
    job = environ.get("SLURM_ARRAY_JOB_ID") or environ.get("SLURM_JOB_ID")
    if not job:
        return None
    cluster = environ.get("SLURM_CLUSTER_NAME", "")
    task = environ.get("SLURM_ARRAY_TASK_ID", "")
    return ":".join(filter(None, ("slurm", cluster, f"{job}_{task}" if task else job)))


def _lsf(environ: Mapping[str, str]) -> str | None:
    job = environ.get("LSB_JOBID")
    if not job:
        return None
    index = environ.get("LSB_JOBINDEX", "0")  # 0 outside an array
    return f"lsf:{job}" if index in {"", "0"} else f"lsf:{job}_{index}"


def _pbs(environ: Mapping[str, str]) -> str | None:
    job = environ.get("PBS_JOBID")
    return f"pbs:{job}" if job else None  # an array task is part of it: 1234[5].server


def _kubernetes(environ: Mapping[str, str]) -> str | None:
    pod = environ.get("HOSTNAME")
    if not pod or "KUBERNETES_SERVICE_HOST" not in environ:
        return None
    return f"kubernetes:{_POD_SUFFIX.sub('', pod)}"
