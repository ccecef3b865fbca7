"""What a user gets back is a frozen dataclass that also answers ``info["step"]``."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest

from milepost.core.records import CheckpointInfo, LoadReport, Record, ResumePoint

INFO = CheckpointInfo(
    filename="a.milepost", path=Path("/c/a.milepost"), experiment_id="run", step=5, metrics={"x": 1.0}
)
RECORDS = [INFO, LoadReport(info=INFO, step=5, epoch=None, metrics={}), ResumePoint(step=6, epoch=0, fresh=False)]

every_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)


@every_record
def test_a_record_answers_like_a_mapping_for_exactly_its_fields(record):
    names = [field.name for field in dataclasses.fields(record)]
    assert list(record) == list(record.keys()) == names
    assert dict(record) == {name: getattr(record, name) for name in names}
    assert all(name in record for name in names)
    assert "keys" not in record
    assert record.get("step") == record["step"] == record.step
    assert record.get("absent") is None
    assert record.get("get", 7) == 7


@every_record
@pytest.mark.parametrize("name", ["absent", "keys", "__class__", "get", 0, None])
def test_what_is_no_field_is_a_key_error_that_names_the_fields(record, name):
    with pytest.raises(KeyError, match="step"):
        record[name]


@every_record
def test_a_record_is_frozen_and_pickles(record):
    assert isinstance(record, Record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.step = 1
    assert pickle.loads(pickle.dumps(record)) == record
