from __future__ import annotations

import sys
import threading
import time
from collections import Counter

import pytest

from milepost.companion.media_encoder import MediaEncoder
from milepost.core.events import Event, MediaAdded, Noticed
from milepost.io.locks import OwnedLock
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.scan import read_log_files, scan
from milepost.runs.segment import new_log_id
from milepost.runs.staged import Staged, staged_names, write_staged


class Killed(BaseException):
    """Stands for the death of the process: nothing of ours catches it."""


class Fate:
    """Ends this thread at its n-th step: at each file opened, renamed or removed, and around each record."""

    def __init__(self) -> None:
        self.left: int | None = None
        self._thread = threading.get_ident()

    def step(self) -> None:
        if self.left is not None and threading.get_ident() == self._thread:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Killed


fate = Fate()
sys.addaudithook(lambda event, _: fate.step() if event in {"open", "os.rename", "os.remove"} else None)


class Log:
    """The log of a process that encodes."""

    def __init__(self, layout) -> None:
        self._log = DirectLog(layout, new_log_id())
        begin_log(self._log, role="companion", attempt=1)
        self.noticed: list[Noticed] = []

    def record(self, event: Event, step: int | None = None) -> int:
        fate.step()
        place = self._log.append(event, step=step)
        fate.step()
        return place

    def sync(self) -> None:
        fate.step()
        self._log.sync()

    def notice(self, noticed: Noticed) -> None:
        self.noticed.append(noticed)

    def close(self) -> None:
        self._log.close()


@pytest.fixture
def recorder(layout):
    made = Log(layout)
    yield made
    made.close()


def page(number: int) -> Staged:
    return Staged(step=number, name="page", form="html")


def added(layout) -> list[MediaAdded]:
    records = (record.event for log in read_log_files(layout.log) for record in scan(log))
    return [event for event in records if isinstance(event, MediaAdded)]


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_between_any_two_steps_each_item_is_added_exactly_once(layout):
    kills = 0
    while True:
        for number in range(3):
            write_staged(layout.staged_media, 0, page(number), [b"<b>%d</b>" % number])
        before = len(added(layout))
        log = Log(layout)
        fate.left = kills
        try:
            encoder = MediaEncoder(layout, 0, log)
            while encoder._encode_batch():
                pass
        except Killed:
            survived = False
        else:
            survived = True
        finally:
            fate.left = None
            for lock in encoder._locks.values():
                lock.release()
            log.close()
        if survived:
            break
        kills += 1
        log = Log(layout)
        encoder = MediaEncoder(layout, 0, log)
        encoder.start()
        assert encoder.finish(time.monotonic() + 30)
        log.close()
        assert staged_names(layout.staged_media) == []
        assert len(added(layout)) == before + 3, kills
    assert kills > 15
    assert set(Counter(event.source for event in added(layout)).values()) == {1}
    for event in added(layout):
        assert (layout.media / event.path).read_bytes() == b"<b>%d</b>" % event.step


def test_what_is_handed_over_while_it_runs_is_encoded_and_the_end_waits_for_the_rest(layout, recorder):
    encoder = MediaEncoder(layout, 0, recorder)
    encoder.start()
    write_staged(layout.staged_media, 0, page(1), [b"one"])
    until(lambda: len(added(layout)) == 1)
    write_staged(layout.staged_media, 0, page(2), [b"two"])
    assert encoder.finish(time.monotonic() + 30)
    assert [event.step for event in added(layout)] == [1, 2]
    assert recorder.noticed == []


def test_each_rank_encodes_its_own_and_doctor_those_of_all(layout, recorder):
    for rank in (0, 1, 12):
        write_staged(layout.staged_media, rank, page(rank), [b"x"])
    encoder = MediaEncoder(layout, 1, recorder)
    encoder.start()
    assert encoder.finish(time.monotonic() + 30)
    assert [event.step for event in added(layout)] == [1]
    doctor = MediaEncoder(layout, None, recorder)
    doctor.start()
    assert doctor.finish(time.monotonic() + 30)
    assert sorted(event.step for event in added(layout)) == [0, 1, 12]
    assert list(layout.log.glob("guest-media*")) == []


def test_where_another_process_encodes_for_the_rank_this_one_keeps_off(layout, recorder):
    other = OwnedLock(layout.cursor("media-0").with_suffix(".lock"))
    assert other.acquire()
    write_staged(layout.staged_media, 0, page(1), [b"x"])
    encoder = MediaEncoder(layout, 0, recorder)
    encoder.start()
    assert not encoder.finish(time.monotonic() + 0.3)
    assert added(layout) == []
    other.release()


def test_a_damaged_item_is_said_and_does_not_hold_up_the_others(layout, recorder):
    name = write_staged(layout.staged_media, 0, page(1), [b"x" * 100])
    path = layout.staged_media / name
    path.write_bytes(path.read_bytes()[:-1])
    write_staged(layout.staged_media, 0, Staged(step=2, name="odd", form="hologram"), [b""])
    write_staged(layout.staged_media, 0, Staged(step=3, name="i", form="image", facts={"dtype": "|O"}), [b"12345678"])
    write_staged(layout.staged_media, 0, page(4), [b"sound"])
    encoder = MediaEncoder(layout, 0, recorder)
    encoder.start()
    assert encoder.finish(time.monotonic() + 30)
    assert [event.step for event in added(layout)] == [4]
    assert [notice.topic for notice in recorder.noticed] == ["damaged"] * 3


def test_a_file_that_cannot_be_written_is_said_once_and_cured(layout, recorder):
    write_staged(layout.staged_media, 0, page(1), [b"x"])
    name = staged_names(layout.staged_media)[0]
    target = layout.media / f"page_1-{name.split('-')[1][-4:]}{name.split('-')[2]}.html"
    target.mkdir()
    (target / "in the way").touch()
    encoder = MediaEncoder(layout, 0, recorder)
    encoder.start()
    until(lambda: recorder.noticed)
    (target / "in the way").unlink()
    target.rmdir()
    assert encoder.finish(time.monotonic() + 30)
    assert [(notice.topic, notice.cured) for notice in recorder.noticed] == [("disk", False), ("disk", True)]
    assert [event.step for event in added(layout)] == [1]


def test_values_that_were_cut_off_are_said_once_for_each_name(layout, recorder):
    facts = {"dtype": "<f4", "shape": [1, 1], "channels_first": False, "height": 1, "width": 1}
    for step in range(3):
        image = Staged(step=step, name="bright", form="image", facts=facts)
        write_staged(layout.staged_media, 0, image, [b"\0\0\x7f\x43"])  # 255.0
    encoder = MediaEncoder(layout, 0, recorder)
    encoder.start()
    assert encoder.finish(time.monotonic() + 30)
    (notice,) = recorder.noticed
    assert "floats from 255 to 255, cut off to 0 and 1" in notice.message
