from __future__ import annotations

import pytest

import milepost
from milepost.core.events import SystemSampled
from milepost.runs.store import RunReader
from milepost.runs.telling import read_history


def test_samples_are_columns_over_time_with_the_step_known_then(layout, direct):
    log, companion = direct(), direct(role="companion")
    companion.append(SystemSampled(values={"system/cpu_percent": 10.0}))
    log.log({"loss": 1.0}, 3)
    log.log({"loss": 1.0}, 4)
    companion.append(SystemSampled(values={"system/cpu_percent": 30, "system/gpu0/power_watts": 250.5}))
    reader = RunReader(layout)
    assert reader.system == ("system/cpu_percent", "system/gpu0/power_watts")
    cpu = reader.system_series("system/cpu_percent")
    assert cpu.value.tolist() == [10.0, 30.0]
    assert cpu.step.tolist() == [-1, 4]
    assert cpu.time[0] < cpu.time[1]
    with pytest.raises(milepost.NotFoundError, match="did you mean 'system/cpu_percent'"):
        reader.system_series("cpu_percent")


def test_each_host_has_samples_of_its_own(layout, direct):
    for rank in (0, 8):
        direct(role="companion", rank=rank).append(SystemSampled(values={"system/cpu_percent": float(rank)}))
    reader = RunReader(layout)
    assert reader.system_series("system/cpu_percent", rank=8).value.tolist() == [8.0]
    assert reader.system == ("system/cpu_percent",)


def test_at_a_glance_it_is_the_largest_memory_and_the_means(layout, direct):
    log = direct(role="companion")
    assert read_history(layout).samples.at_a_glance() == {}
    for memory, cpu in ((5, 10), (9, 30), (7, 50)):
        values = {"system/process_memory_bytes": memory, "system/cpu_percent": cpu}
        log.append(SystemSampled(values=values | {f"system/gpu{n}/utilization_percent": cpu + n for n in range(2)}))
    shown = read_history(layout).samples.at_a_glance()
    assert shown == {"process_memory_bytes": 9.0, "cpu_percent": 30.0, "gpu_percent": 30.5}
