"""Which run a start begins or goes on with."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core.config import ExperimentConfig
from milepost.core.errors import ConflictError, InvalidInputError, NotFoundError
from milepost.core.events import StatusChanged
from milepost.io.locks import OwnedLock
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.projections import write_metadata
from milepost.runs.segment import new_log_id
from milepost.runs.starting import differing_keys, find_run, reserve_run, resume_identity, wait_until_idle

IDENTITY = resume_identity("bert", {"lr": 1}, key=None, job=None, script="/train.py")
OTHER = resume_identity("bert", {"lr": 2}, key=None, job=None, script="/train.py")


@pytest.fixture
def config(tmp_path) -> ExperimentConfig:
    return ExperimentConfig(root=str(tmp_path))


def make_run(config, status: str | None, *, identity=IDENTITY, started: float = 1.0):
    from dataclasses import asdict

    layout = reserve_run(config, "bert")
    layout.log.mkdir(parents=True)
    write_metadata(layout, {"start_time": started, "resume_identity": asdict(identity)})
    log = DirectLog(layout, new_log_id())
    begin_log(log, role="trainer", attempt=1)
    if status is not None:
        log.append(StatusChanged(status=status))
    log.close()
    return layout


def test_the_strongest_identity_counts():
    of = lambda **more: resume_identity("n", {"a": 1}, **({"key": None, "job": None, "script": "s"} | more))  # noqa: E731
    assert (of(key="k", job="j").kind, of(job="j").kind, of().kind) == ("key", "job", "recipe")
    assert of(key="k") == resume_identity("other", {}, key="k", job="j", script="t")
    assert of(job="j") != resume_identity("other", {"a": 1}, key=None, job="j", script="s")
    assert of() == resume_identity("n", {"a": 1}, key=None, job=None, script="s")
    assert len({of(), of(script="t"), OTHER, IDENTITY}) == 4


@given(st.dictionaries(st.text(), st.integers() | st.text(), min_size=2))
def test_the_order_of_hyperparameters_does_not_matter(values):
    turned = dict(reversed(values.items()))
    same = [resume_identity("n", hp, key=None, job=None, script="s") for hp in (values, turned)]
    assert same[0] == same[1]
    assert differing_keys(values, turned) == []


def test_ids_never_collide_however_many_start_at_once(config):
    made, gate = [], threading.Barrier(16)

    def start():
        gate.wait()
        made.append(reserve_run(config, "Bert").experiment_id)

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16


@pytest.mark.parametrize("status", ["running", None, "failed", "killed", "stopped", "preempted", "paused"])
def test_auto_goes_on_with_what_is_unfinished(config, status):
    layout = make_run(config, status)
    assert find_run(config, "auto", IDENTITY) == layout
    assert find_run(config, "must", IDENTITY) == layout
    assert find_run(config, "never", IDENTITY) is None
    assert find_run(config, "auto", OTHER) is None


def test_a_completed_run_never_matches_but_its_id_does(config):
    layout = make_run(config, "completed")
    assert find_run(config, "auto", IDENTITY) is None
    with pytest.raises(NotFoundError, match="no unfinished run matches this recipe"):
        find_run(config, "must", IDENTITY)
    assert find_run(config, layout.experiment_id, OTHER) == layout


def test_the_newest_of_several_is_taken(config):
    make_run(config, "failed", started=1.0)
    newest = make_run(config, "failed", started=3.0)
    make_run(config, "failed", started=2.0)
    make_run(config, "completed", started=4.0)
    assert find_run(config, "auto", IDENTITY) == newest


@pytest.mark.parametrize("resume", ["../x", "", "a/b", ".", "-rf", "x" * 200, "nul", "a\0b", "Auto "])
def test_what_can_be_no_id_is_refused(config, resume):
    with pytest.raises(InvalidInputError, match="resume is"):
        find_run(config, resume, IDENTITY)


def test_an_unknown_id_is_named_and_an_empty_store_is_no_error(config):
    with pytest.raises(NotFoundError, match="no run 'bert_1'"):
        find_run(config, "bert_1", IDENTITY)
    assert find_run(config, "auto", IDENTITY) is None


def test_a_live_run_is_waited_for_then_refused_and_its_holder_named(config):
    layout = make_run(config, "running")
    lock = OwnedLock(layout.log / f"{'ab' * 16}.lock")
    lock.acquire()
    told: list[str] = []
    with pytest.raises(ConflictError, match="is live"):
        wait_until_idle(layout, told.append, longest=0.1)
    assert len(told) == 1
    threading.Timer(0.1, lock.release).start()
    assert wait_until_idle(layout, told.append, longest=30).status == "killed"


def test_what_differs_is_shown_with_both_values():
    before, now = {"a": 1, "b": [1], "gone": None}, {"a": 1, "b": [2], "new": "x"}
    assert differing_keys(before, now) == [
        "b ([1] before, [2] now)",
        "gone (None before, '(absent)' now)",
        "new ('(absent)' before, 'x' now)",
    ]
