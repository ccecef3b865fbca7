from __future__ import annotations

import threading

import msgspec
import pytest

from milepost.companion.sampling import Sampling, is_first_of_host

FACTS = {"variables": {}}


def test_samples_come_at_their_pace_and_one_more_at_the_end(hello):
    settings = hello.settings | {"system_metrics_every": 0.05}
    taken, several = [], threading.Event()

    def record(sampled):
        taken.append(sampled.values)
        if len(taken) == 3:
            several.set()

    sampling = Sampling(msgspec.structs.replace(hello, settings=settings, facts=FACTS), record)
    sampling.start()
    assert several.wait(30)
    sampling.stop()
    assert all("system/cpu_percent" in values for values in taken)


@pytest.mark.parametrize(
    ("every", "facts"),
    [(None, FACTS), (0.01, {})],  # switched off; a doctor has no process to look at
)
def test_none_are_taken_where_none_are_wanted(hello, every, facts):
    settings = hello.settings | {"system_metrics_every": every}
    taken = []
    sampling = Sampling(msgspec.structs.replace(hello, settings=settings, facts=facts), taken.append)
    sampling.start()
    sampling.stop()
    assert taken == []


@pytest.mark.parametrize(
    ("rank", "variables", "first"),
    [
        (0, {}, True),
        (0, {"LOCAL_RANK": "0"}, True),
        (3, {"LOCAL_RANK": "3"}, False),
        (8, {"LOCAL_RANK": "0"}, True),
        (8, {"SLURM_LOCALID": "0"}, True),
        (9, {"SLURM_LOCALID": "1"}, False),
        (1, {}, False),
    ],
)
def test_the_first_process_of_each_host_is_the_one_that_is_watched(hello, rank, variables, first):
    said = msgspec.structs.replace(hello, rank=rank, facts={"variables": variables})
    assert is_first_of_host(said) == first
