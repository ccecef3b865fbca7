from __future__ import annotations

import json

import pytest

from milepost.core.errors import CorruptDataError
from milepost.environment.code_record import CodeRecord, describe

RECORD = CodeRecord(
    commit="a" * 40,
    branch="main",
    remote="https://[redacted]@example.org/a.git",
    changed=("a.py",),
    untracked=("b.py", "c.bin"),
    copied=("b.py",),
    redacted=("a.py",),
    omitted={"c.bin": "binary"},
)


def test_a_record_survives_json() -> None:
    assert CodeRecord.from_dict(json.loads(json.dumps(RECORD.to_dict()))) == RECORD
    assert CodeRecord.from_dict({"later": 1}) == CodeRecord(omitted={})


@pytest.mark.parametrize(
    "stored", [{"commit": 7}, {"changed": "a"}, {"changed": [1]}, {"omitted": ["a"]}, {"commit": ["a"]}, {"copied": {}}]
)
def test_a_record_of_another_shape_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(CorruptDataError, match="record of a run's code"):
        CodeRecord.from_dict(stored)


def test_a_person_reads_what_there_is_and_what_is_not() -> None:
    assert describe(RECORD) == [
        f"commit    {'a' * 40}",
        "branch    main",
        "remote    https://[redacted]@example.org/a.git",
        "changed   a.py",
        "untracked b.py (copy kept)",
        "untracked c.bin",
        "redacted  a.py",
        "left out  c.bin: binary",
    ]
    assert describe(CodeRecord(commit="b", omitted={}))[-1] == "clean: the tree was the commit"
    assert describe(CodeRecord(absent="git is not installed", script="t.py", omitted={})) == [
        "no commit: git is not installed",
        "script    t.py",
    ]
