"""A value on a device is logged when it has arrived, and nobody waits for it before."""

import sys
import types
from typing import ClassVar

import pytest

from milepost.core.events import Deferred
from milepost.runs.deferred import DeviceValues
from milepost.runs.scan import read_log_files, scan


class Host:
    """Pinned memory."""

    def __init__(self):
        self.value = None
        self.ndim = 0

    def copy_(self, source, *, non_blocking):
        assert non_blocking
        self.value = source.value

    def cpu(self):
        return self

    def item(self):
        return self.value


class Event:
    """Passes when told to."""

    made: ClassVar[list["Event"]] = []

    def __init__(self):
        self.passed = False
        Event.made.append(self)

    def record(self, stream):
        assert stream == "the stream that computes"

    def query(self):
        return self.passed

    def synchronize(self):
        self.passed = True


class Tensor:
    """Stands for a tensor of a device; this machine may have none. With one, torch's own are tested elsewhere."""

    ndim = 0
    dtype = "float32"

    def __init__(self, value, kind="cuda"):
        self.value = value
        self.device = types.SimpleNamespace(type=kind)

    def detach(self):
        return self

    def clone(self):
        host = Host()
        host.value = self.value
        return host


@pytest.fixture
def torch(monkeypatch):
    Event.made = []
    cuda = types.SimpleNamespace(Event=Event, current_stream=lambda device: "the stream that computes")
    torch = types.SimpleNamespace(cuda=cuda, empty=lambda size, dtype, pin_memory: Host())
    monkeypatch.setitem(sys.modules, "torch", torch)


def deferred(layout):
    return [r.event for log in read_log_files(layout.log) for r in scan(log) if isinstance(r.event, Deferred)]


def test_a_value_is_logged_when_its_copy_is_done(layout, direct, torch):
    log = direct()
    values = DeviceValues(log)
    log.deferred = values.defer
    log.log({"loss": Tensor(0.5), "count": Tensor(3)}, 1)
    values.poll()
    assert deferred(layout) == []
    Event.made[0].passed = True
    values.poll()
    assert [(event.name, event.value) for event in deferred(layout)] == [("loss", 0.5)]
    values.drain()
    assert [(event.name, event.value) for event in deferred(layout)] == [("loss", 0.5), ("count", 3)]
    assert len({event.sequence for event in deferred(layout)}) == 1


def test_devices_without_events_are_read_by_the_helper_thread(layout, direct, torch):
    log = direct()
    values = DeviceValues(log)
    log.deferred = values.defer
    log.log({"loss": Tensor(0.25, "mps")}, 1)
    values.poll()
    assert [event.value for event in deferred(layout)] == [0.25]


def test_real_tensors_of_this_machines_memory_need_no_device(layout, direct, steps):
    torch = pytest.importorskip("torch")
    log = direct()
    log.deferred = DeviceValues(log).defer
    log.log({"loss": torch.tensor(0.5, requires_grad=True), "n": torch.tensor(3), "b": torch.tensor([True])[0]}, 1)
    (files,) = read_log_files(layout.log)
    record = list(scan(files))[-1]
    assert record.event.values == {"loss": 0.5, "n": 3, "b": True}
