"""All logs of a run make one story."""

import os

import numpy as np
import pytest

from milepost.core.events import (
    CheckpointChanged,
    Deferred,
    Described,
    Line,
    Lost,
    MediaAdded,
    Noticed,
    Rewound,
    StatusChanged,
    Text,
)
from milepost.runs.telling import read_history


def steps_of(history, name="loss", **options):
    return history.series(name, **options).step.tolist()


def test_an_empty_folder_has_an_empty_history(layout):
    history = read_history(layout)
    assert history.attempts == []
    assert history.metrics() == []
    assert len(history.series("loss")) == 0
    assert history.status is None


def test_points_have_step_epoch_time_and_value(layout, direct):
    log = direct()
    log.log({"loss": 0.5, "deep": {"er": 1}}, 3, 0.25)
    log.log({"loss": float("nan")}, 4)
    history = read_history(layout)
    series = history.series("loss")
    assert history.metrics() == ["loss", "deep/er"]
    assert series.step.tolist() == [3, 4]
    assert series.epoch[0] == 0.25
    assert np.isnan(series.epoch[1])
    assert np.isnan(series.value[1])
    assert series.time[0] <= series.time[1]
    assert history.series("deep/er").value.dtype == np.int64


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([True, False], bool), ([1, 2**60], np.int64), ([1, 0.5], np.float64), ([2**63, 1], np.float64)],
)
def test_values_keep_the_narrowest_exact_type(layout, direct, values, dtype):
    log = direct()
    for value in values:
        log.log({"x": value})
    assert read_history(layout).series("x").value.dtype == dtype


def test_integers_beyond_64_bits_become_the_nearest_float(layout, direct):
    direct().log({"x": 10**30})
    assert read_history(layout).series("x").value.tolist() == [1e30]


def test_a_late_value_stands_where_its_record_stands(layout, direct):
    log = direct()
    waiting = []
    log.deferred = lambda tensor, sequence, name: waiting.append((sequence, name))

    class OnDevice:
        device = type("device", (), {"type": "cuda"})
        ndim = 0

    for step in range(3):
        log.log({"loss": OnDevice(), "lr": 0.1}, step, 1)
    for (sequence, name), value in reversed(list(zip(waiting, [0.0, 1.0, 2.0], strict=True))):
        log.append(Deferred(sequence=sequence, name=name, value=value))
    series = read_history(layout).series("loss")
    assert series.step.tolist() == [0, 1, 2]
    assert series.value.tolist() == [0.0, 1.0, 2.0]
    assert series.epoch.tolist() == [1, 1, 1]


def test_a_resume_hides_what_it_does_again_and_counts_it(layout, direct):
    first = direct(attempt=1)
    for step in range(10):
        first.log({"loss": 1.0, "lr": 0.1}, step)
    second = direct(attempt=2)
    second.append(Rewound(step=6))
    for step in range(7, 9):
        second.log({"loss": 2.0}, step)
    history = read_history(layout)
    assert steps_of(history) == [*range(7), 7, 8]
    assert history.series("loss").value.tolist() == [1.0] * 7 + [2.0] * 2
    assert steps_of(history, "lr") == list(range(7))
    assert steps_of(history, superseded=True) == [7, 8, 9]
    assert history.lost_steps == 3


def test_a_second_resume_counts_only_what_was_still_shown(layout, direct):
    first = direct(attempt=1)
    for step in range(10):
        first.log({"loss": 1.0}, step)
    second = direct(attempt=2)
    second.append(Rewound(step=6))
    second.log({"loss": 2.0}, 7)
    third = direct(attempt=3)
    third.append(Rewound(step=4))
    history = read_history(layout)
    assert steps_of(history) == list(range(5))
    assert history.lost_steps == 3 + 3


def test_a_rewind_hides_earlier_records_of_its_own_log_and_no_later_ones(layout, direct):
    log = direct()
    for step in range(5):
        log.log({"loss": 1.0}, step)
    log.append(Rewound(step=1))
    for step in range(2, 4):
        log.log({"loss": 2.0}, step)
    assert read_history(layout).series("loss").value.tolist() == [1.0, 1.0, 2.0, 2.0]


def test_ranks_and_workers_are_told_apart(layout, direct):
    direct(rank=0).log({"loss": 1.0}, 0)
    direct(rank=1).log({"loss": 2.0}, 0)
    direct(role="worker", rank=0).log({"decoded": 1.0}, 0)
    history = read_history(layout)
    assert history.ranks() == [0, 1]
    assert history.metrics() == ["loss", "decoded"]
    assert history.series("loss", rank=1).value.tolist() == [2.0]
    (attempt,) = history.attempts
    assert [rank for rank, _ in attempt.rank_logs] == [0, 1]
    assert len(attempt.log_ids) == 3


def test_attempts_have_their_ends(layout, direct):
    first = direct(attempt=1)
    first.log({"loss": 1.0}, 41)
    second = direct(attempt=2)
    second.log({"loss": 1.0}, 50)
    second.append(StatusChanged(status="running"))
    companion = direct(role="companion", attempt=2)
    companion.append(StatusChanged(status="killed", reason="killed by SIGKILL", signal="SIGKILL", source="companion"))
    third = direct(attempt=3)
    third.append(StatusChanged(status="completed", summary={"final": 1}))
    direct(role="companion", attempt=3).append(StatusChanged(status="failed", source="companion"))
    history = read_history(layout)
    assert [(a.number, a.status, a.last_step) for a in history.attempts] == [
        (1, "killed", 41),
        (2, "killed", 50),
        (3, "completed", -1),
    ]
    assert history.attempts[1].reason == "killed by SIGKILL"
    assert history.attempts[0].pid == os.getpid()
    assert history.status is not None
    assert history.status[0].summary == {"final": 1}


def test_the_last_word_counts_for_descriptions_checkpoints_and_notices(layout, direct):
    log, companion = direct(), direct(role="companion")
    log.append(Described(fields={"name": "bert", "tags": ["a"]}))
    log.append(Described(fields={"tags": ["b"]}))
    for step in (1, 2):
        info = {"filename": f"c{step}", "step": step}
        companion.append(CheckpointChanged(step=step, action="committed", filename=f"c{step}", info=info))
        companion.append(CheckpointChanged(step=step, action="verified", filename=f"c{step}"))
    companion.append(CheckpointChanged(step=1, action="removed", filename="c1"))
    companion.append(Noticed(source="wandb", topic="login", message="authentication failed"))
    companion.append(Noticed(source="log", topic="disk", message="full"))
    companion.append(Noticed(source="log", topic="disk", message="works again", cured=True))
    log.append(Line(stream="stdout", text="hello"))
    log.append(Text(step=3, name="sample", text="once"), step=3)
    log.append(MediaAdded(step=3, name="plot", path="plot.png", media_type="image/png", size=3), step=3)
    log.append(Lost(count=7))
    history = read_history(layout)
    assert history.fields == {"name": "bert", "tags": ["b"]}
    assert history.checkpoints == {"c2": {"filename": "c2", "step": 2, "verified": True}}
    assert [notice.message for notice in history.notices] == ["authentication failed"]
    assert [line.text for line in history.lines] == ["hello"]
    assert [(text.step, text.name) for text in history.texts] == [(3, "sample")]
    assert [added.path for added, _ in history.media.added] == ["plot.png"]
    assert history.lost == 7


def test_a_log_whose_first_record_is_damaged_still_gives_its_numbers(layout, direct):
    log = direct()
    for step in range(5):
        log.log({"loss": 1.0}, step)
    content = bytearray(log.path.read_bytes())
    content[64 + 20] ^= 0xFF
    log.path.write_bytes(content)
    history = read_history(layout)
    assert steps_of(history) == list(range(5))
    assert len(history.damage) == 1
