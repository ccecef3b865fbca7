"""Which job of a cluster's scheduler is this, when does its time end, and did the scheduler start it again?

All of it is read off environment variables, so every function is pure, and no scheduler is asked or loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["SlurmTask", "is_preemption_signal", "job_identity", "seconds_left", "slurm_task", "times_requeued"]

#: A pod's name ends in five characters of this alphabet unless its controller gives it a stable name.
_POD_SUFFIX = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{5}$")
_WARNINGS = frozenset({"SIGUSR1", "SIGUSR2", "SIGXCPU"})


def job_identity(environ: Mapping[str, str]) -> str | None:
    """Name of the job and its array task, the same after a requeue; None outside a scheduler.

    Known are SLURM, LSF, PBS, Grid Engine and Kubernetes.
    """
    return _slurm(environ) or _lsf(environ) or _pbs(environ) or _grid_engine(environ) or _kubernetes(environ)


def times_requeued(environ: Mapping[str, str]) -> int:
    """How often the scheduler started this job again: evidence that the attempt before was preempted."""
    return _number(environ, "SLURM_RESTART_COUNT") or _number(environ, "RESTARTED") or 0


def seconds_left(environ: Mapping[str, str], now: float) -> float | None:
    """Seconds until the job's time limit as SLURM said it when the job began; None if nobody said.

    Args:
        environ: ``SLURM_JOB_END_TIME`` is in it where there is a limit.
        now: Seconds since 1970.
    """
    end = _number(environ, "SLURM_JOB_END_TIME")
    return None if end is None else end - now


def is_preemption_signal(name: str, environ: Mapping[str, str]) -> bool:
    """Whether the signal is the scheduler's warning that the job's time here ends.

    Inside a job nobody but the scheduler sends SIGUSR1, SIGUSR2 or SIGXCPU (``sbatch --signal``, ``bsub -wa``). SIGTERM
    is no evidence: a person's ``scancel`` sends it too.
    """
    return name in _WARNINGS and job_identity(environ) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmTask:
    """Place of this process among the tasks that one ``srun`` started; ``nodes`` is how many hosts they are on."""

    rank: int
    tasks: int
    local_rank: int
    nodes: int


def slurm_task(environ: Mapping[str, str]) -> SlurmTask | None:
    """This process as one of several tasks of ``srun``; None if it is alone.

    The variables of the step are asked, not those of the job: a script that ``sbatch`` runs has the latter too, and is
    no task.
    """
    rank, tasks = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    if rank is None or tasks is None or tasks < 2 or rank >= tasks:
        return None
    local_rank, nodes = _number(environ, "SLURM_LOCALID"), _number(environ, "SLURM_STEP_NUM_NODES")
    return SlurmTask(rank=rank, tasks=tasks, local_rank=local_rank or 0, nodes=nodes or 1)


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


def _grid_engine(environ: Mapping[str, str]) -> str | None:
    job, task = environ.get("JOB_ID"), environ.get("SGE_TASK_ID")  # the latter is set in every job
    if not job or not task:
        return None
    return f"sge:{job}" if task == "undefined" else f"sge:{job}_{task}"


def _kubernetes(environ: Mapping[str, str]) -> str | None:
    pod = environ.get("HOSTNAME")
    if not pod or "KUBERNETES_SERVICE_HOST" not in environ:
        return None
    return f"kubernetes:{_POD_SUFFIX.sub('', pod)}"


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None
