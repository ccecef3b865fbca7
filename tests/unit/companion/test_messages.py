"""Trainer and companion understand each other, whatever the size and the text of what they say."""

from __future__ import annotations

import os
import typing

import msgspec
import pytest

from milepost.companion.messages import (
    Channel,
    Finish,
    FromCompanion,
    FromTrainer,
    Hello,
    Saved,
    SegmentShared,
    Synced,
    Told,
)

HELLO = Hello(
    layout={"experiment_dir": "/e", "tensorboard_dir": None},
    settings={"trackers": [], "exit_timeout": 30.0},
    log_id=b"\0\xff" * 8,
    host="h",
    boot_id="b",
    pid=1,
    start_time=0.5,
    attempt=1,
    rank=0,
    world_size=1,
    facts={"argv": ["a"]},
)


@pytest.fixture
def ends():
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    yield ours, other
    ours.close()
    other.close()


def test_every_message_of_both_sides_arrives_as_it_was_sent(ends):
    samples = {bool: True, int: 7, int | None: 9, float: 0.5, float | None: 0.5, str: "text", bytes: b"\0" * 16}

    def sample(hint):
        origin = typing.get_origin(hint)
        return {"a": 1} if origin is dict else ["x"] if origin is list else samples[hint]

    for cls in [*typing.get_args(FromTrainer), *typing.get_args(FromCompanion)]:
        hints = typing.get_type_hints(cls)
        message = cls(**{name: sample(hints[name]) for name in cls.__struct_fields__})
        assert ends[0].send(message)
        assert ends[1].receive() == (message, ())


@pytest.mark.parametrize("size", [0, 1 << 15, (1 << 16) - 10, 1 << 16, 1 << 20, 5 << 20])
def test_a_message_of_any_size_arrives_with_its_descriptors(ends, size):
    read, write = os.pipe()
    message = Saved(number=3, info={"text": "x" * size})
    assert ends[0].send(message, (write,), wait=False)
    os.close(write)
    received, descriptors = ends[1].receive()
    assert received == message
    os.write(descriptors[0], b"it is that pipe")
    os.close(descriptors[0])
    assert os.read(read, 100) == b"it is that pipe"
    assert os.read(read, 100) == b"", "nobody else holds its other end"
    os.close(read)


@pytest.mark.parametrize("size", [10, 1 << 18])
def test_a_path_that_is_no_text_arrives_as_it_is(ends, size):
    folder = os.fsdecode(b"/caf\xe9" + b"x" * size)
    message = msgspec.structs.replace(HELLO, layout={"experiment_dir": folder, "tensorboard_dir": None})
    assert ends[0].send(message)
    assert ends[1].receive() == (message, ())


def test_no_descriptor_leaks_however_much_is_said(ends):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        ends[0].send(Told(text="x" * (number << 12)))
        ends[1].receive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_queue_is_told_instead_of_waited_for(ends):
    message = Told(text="x" * 1000)
    while ends[0].send(message, wait=False):
        pass
    assert not ends[0].send(message, wait=False)
    assert ends[1].receive() == (message, ())
    assert ends[0].send(message, wait=False)


def test_an_end_that_is_gone_is_the_end_of_the_conversation_after_what_was_said(ends):
    ends[0].send(Synced(position=5))
    ends[0].close()
    assert ends[1].receive() == (Synced(position=5), ())
    assert ends[1].receive() is None
    assert not ends[1].send(Finish(timeout=1.0))


def test_a_descriptor_that_arrives_is_not_inherited_by_programs_that_are_started(ends):
    with open(os.devnull) as file:
        ends[0].send(SegmentShared(ordinal=1, size=0), (file.fileno(),))
    _, (descriptor,) = ends[1].receive()
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
