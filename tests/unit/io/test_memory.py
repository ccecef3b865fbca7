"""Shared memory outlives its maker, cannot be cut short, and is written by its maker only."""

import os
import resource
import subprocess
import sys

import pytest

from milepost.core.errors import StorageError
from milepost.io import memory
from milepost.io.memory import SharedSegment, available, available_memory


@pytest.fixture
def segment():
    made = SharedSegment.create(1 << 20, "test")
    yield made
    made.close()


def test_a_segment_starts_zero_filled_and_another_view_sees_what_is_stored(segment):
    view = SharedSegment.attach(os.dup(segment.fd), segment.size)
    assert not any(view.map[:4096])
    segment.map[100:105] = b"hello"
    assert view.map[100:105] == b"hello"
    view.close()


def test_an_attached_segment_cannot_be_written(segment):
    view = SharedSegment.attach(os.dup(segment.fd), segment.size)
    with pytest.raises(TypeError):
        view.map[0] = 1
    view.close()


@pytest.mark.linux
def test_a_sealed_segment_cannot_be_cut_short_or_written_anew(segment):
    segment.seal()
    for size in (0, 1 << 21):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size)
    with pytest.raises(PermissionError):
        os.pwrite(segment.fd, b"x", 0)
    segment.map[0] = 7
    view = SharedSegment.attach(os.dup(segment.fd), segment.size)
    assert view.map[0] == 7
    view.close()


def test_a_segment_outlives_the_process_that_made_it():
    ours, theirs = os.pipe()
    segment = SharedSegment.create(1 << 16, "kept")
    child = os.fork()
    if child == 0:
        segment.map[0:4] = b"last"
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert segment.map[0:4] == b"last"
    os.close(ours)
    os.close(theirs)
    segment.close()


@pytest.mark.parametrize("by_kernel", [True, False])
def test_populated_pages_take_no_fault_later_and_keep_their_content(monkeypatch, by_kernel):
    if not by_kernel:
        monkeypatch.setattr(memory, "_madvise", lambda: None)
    segment = SharedSegment.create(8 << 20, "populated")
    segment.map[5000] = 42
    segment.populate(100, segment.size)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for place in range(0, segment.size, 4096):
        segment.map[place] = segment.map[place]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 200
    assert segment.map[5000] == 42
    segment.close()


def test_a_descriptor_that_is_no_such_segment_is_refused(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(StorageError):
        SharedSegment.attach(fd, 1 << 20)
    os.close(fd)


def test_too_much_memory_is_an_error_and_leaks_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError):
        SharedSegment.create(1 << 62, "huge")
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_waits_for_nobody_and_views_stay_readable(segment):
    view = memoryview(segment.map)
    segment.map[0] = 9
    segment.close()
    segment.close()
    assert view[0] == 9


def test_where_there_is_no_memfd_an_unlinked_file_serves(monkeypatch):
    monkeypatch.setattr(memory, "_memfd", lambda name: None)
    segment = SharedSegment.create(1 << 16, "file")
    segment.map[0:2] = b"ok"
    segment.seal()
    view = SharedSegment.attach(os.dup(segment.fd), segment.size)
    assert view.map[0:2] == b"ok"
    view.close()
    segment.close()


@pytest.mark.linux
def test_a_python_without_memfd_uses_the_system_call():
    code = """
import os
del os.memfd_create
from milepost.io import memory
assert memory.available()
segment = memory.SharedSegment.create(4096, "call")
assert "memfd:call" in os.readlink(f"/proc/self/fd/{segment.fd}")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.linux
def test_memory_can_be_shared_here():
    assert available()


@pytest.mark.linux
def test_a_forked_child_holds_neither_map_nor_descriptor_of_what_is_kept_from_it(segment):
    segment.keep_from_children()
    segment.map[0] = 7
    node = os.fstat(segment.fd).st_ino
    child = os.fork()
    if child == 0:
        held = [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
        shared = any(os.stat(f"/proc/self/fd/{n}").st_ino == node for n in held)
        segment.close()  # and unmaps nothing that came to lie there since
        os._exit(1 if shared or segment.fd != -1 else 0)
    assert os.waitpid(child, 0)[1] == 0
    assert segment.map[0] == 7


@pytest.mark.linux
def test_a_limit_of_file_size_or_address_space_is_an_error_with_a_cure():
    code = """
import resource
from milepost.core.errors import StorageError
from milepost.io.memory import SharedSegment
for limit, kind in ((resource.RLIMIT_FSIZE, "file-too-large"), (resource.RLIMIT_AS, "no-memory")):
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (512 << 20, before[1]))
    try:
        SharedSegment.create(1 << 30, "limited")
        raise SystemExit(f"{kind} did not come")
    except StorageError as error:
        assert error.kind == kind and error.cure, (error.kind, str(error))
    resource.setrlimit(limit, before)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_available_memory_is_limited_by_the_machine():
    assert 0 < available_memory() < 1 << 50


def test_available_memory_is_limited_by_every_group_above(tmp_path):
    group = tmp_path / "jobs" / "mine"
    group.mkdir(parents=True)
    (tmp_path / "jobs" / "memory.max").write_text("1000\n")
    (tmp_path / "jobs" / "memory.current").write_text("900\n")
    (tmp_path / "jobs" / "memory.stat").write_text("anon 700\ninactive_file 200\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("900\n")
    assert memory._rooms(tmp_path, "/jobs/mine", "memory.max", "memory.current") == [300]
