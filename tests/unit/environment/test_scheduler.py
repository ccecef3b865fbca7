from __future__ import annotations

import pytest

from milepost.environment.scheduler import (
    SlurmTask,
    is_preemption_signal,
    job_identity,
    seconds_left,
    slurm_task,
    times_requeued,
)


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
        ({"JOB_ID": "9", "SGE_TASK_ID": "undefined"}, "sge:9"),
        ({"JOB_ID": "9", "SGE_TASK_ID": "3"}, "sge:9_3"),
        ({"JOB_ID": "anything"}, None),
        ({"SLURM_JOB_ID": "18", "SLURM_HET_JOB_ID": "17", "SLURM_HET_SIZE": "2"}, "slurm:18"),
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


def test_grid_engine_counts_a_restart():
    assert times_requeued({"JOB_ID": "9", "RESTARTED": "1"}) == 1


@pytest.mark.parametrize(
    ("environ", "left"), [({}, None), ({"SLURM_JOB_END_TIME": "soon"}, None), ({"SLURM_JOB_END_TIME": "1060"}, 60.0)]
)
def test_the_time_that_is_left_is_known_where_slurm_said_when_it_ends(environ, left):
    assert seconds_left(environ, 1000.0) == left


@pytest.mark.parametrize(
    ("environ", "task"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # the script of sbatch itself
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_PROCID": "8", "SLURM_STEP_NUM_TASKS": "8"}, None),
        (
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "2"},
            SlurmTask(rank=5, tasks=8, local_rank=1, nodes=2),
        ),
    ],
)
def test_only_several_tasks_of_one_step_are_tasks(environ, task):
    assert slurm_task(environ) == task
