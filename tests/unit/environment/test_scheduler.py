from __future__ import annotations

import pytest

from milepost.environment.scheduler import is_preemption_signal, job_identity, times_requeued


@pytest.mark.parametrize(
    ("environ", "identity"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, "slurm:17"),
        ({"SLURM_JOB_ID": "17", "SLURM_CLUSTER_NAME": "big"}, "slurm:big:17"),
        ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}, "slurm:17_2"),
        ({"LSB_JOBID": "8", "LSB_JOBINDEX": "0"}, "lsf:8"),
        ({"LSB_JOBID": "8", "LSB_JOBINDEX": "4"}, "lsf:8_4"),
        ({"PBS_JOBID": "1234[5].server"}, "pbs:1234[5].server"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "bert-x7k2p"}, "kubernetes:bert"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "bert-worker-0"}, "kubernetes:bert-worker-0"),
        ({"HOSTNAME": "laptop"}, None),
    ],
)
def test_each_scheduler_names_its_job(environ: dict[str, str], identity: str | None) -> None:
    assert job_identity(environ) == identity


def test_a_requeued_job_keeps_its_identity_and_counts() -> None:
    first = {"SLURM_JOB_ID": "17"}
    again = first | {"SLURM_RESTART_COUNT": "2"}
    assert job_identity(first) == job_identity(again)
    assert (times_requeued(first), times_requeued(again), times_requeued({"SLURM_RESTART_COUNT": "x"})) == (0, 2, 0)


def test_only_a_warning_inside_a_job_is_evidence_of_preemption() -> None:
    job = {"SLURM_JOB_ID": "17"}
    assert is_preemption_signal("SIGUSR1", job)
    assert not is_preemption_signal("SIGUSR1", {})
    assert not is_preemption_signal("SIGTERM", job)
