"""A job crosses the process boundary whole."""

from __future__ import annotations

import math

import pytest

from milepost.checkpoint.job import SaveJob, TensorEntry, decode_job, encode_job
from milepost.core.errors import InvalidInputError

ENTRY = TensorEntry(name="w", dtype="float32", shape=(2, 3), stride=(1, 2), offset=64, nbytes=24, storage=0)
JOB = SaveJob(
    path="/c/checkpoint_1.milepost",
    experiment_id="bert",
    step=7,
    tree="null",
    tensors=[ENTRY],
    arena_bytes=88,
    metrics={"seed": 1 << 100, "nested": {"loss": 0.25, "steps": (1, 2)}},
    side_files=["/c/rank1"],
    contents=["model"],
)


def test_a_job_comes_back_equal_with_integers_of_any_size() -> None:
    assert decode_job(encode_job(JOB)) == JOB


def test_a_metric_that_is_not_a_number_survives() -> None:
    job = SaveJob(
        path="/c/x", experiment_id="e", step=0, tree="null", tensors=[], arena_bytes=0, metrics={"x": math.nan}
    )
    assert math.isnan(decode_job(encode_job(job)).metrics["x"])


def test_a_metric_that_is_no_plain_value_is_refused_by_its_place() -> None:
    job = SaveJob(path="/c/x", experiment_id="e", step=0, tree="null", tensors=[], arena_bytes=0, metrics={"x": len})
    with pytest.raises(InvalidInputError, match=r"metrics\.x"):
        encode_job(job)


@pytest.mark.parametrize("data", [b"", b"\x80", b"nonsense", encode_job(JOB)[:-4]])
def test_bytes_that_are_no_job_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="no save job"):
        decode_job(data)
