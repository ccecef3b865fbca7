"""A file of a framework that is replaced is the old one or the new one, at whichever system call its writer dies."""

import io
import os
import shutil
import zipfile

import pytest
from torture.tracer import Tracer, is_available

from milepost.integrations.sound_file import damage_of, write_sound

pytestmark = pytest.mark.linux


def zip_of(text):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("archive/data.pkl", text)
    return memory.getvalue()


OLD, NEW = zip_of("old" * 5000), zip_of("new" * 9000)


def write_and_die(path, number):
    """Replace the file in a child that is killed at its system call ``number``; whether it died of it."""
    begin, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(begin, 1)
        write_sound(path, memoryview(NEW), {})
        os._exit(0)
    tracer = Tracer(child, kill_at=number)
    os.write(go, b"x")
    _, status = os.waitpid(child, 0)
    tracer.stop()
    os.close(begin)
    os.close(go)
    return status != 0


@pytest.mark.skipif(not is_available(), reason="this system does not let us trace a child")
def test_a_writer_that_dies_at_any_system_call_leaves_the_old_file_or_the_new_one_and_the_next_one_succeeds(tmp_path):
    seen, number = [], 1
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "last.ckpt"
        write_sound(path, memoryview(OLD), {})
        died = write_and_die(path, number)
        seen.append(path.read_bytes())
        assert seen[-1] in {OLD, NEW}, number
        assert damage_of(path) == "", number
        write_sound(path, memoryview(NEW), {})
        assert path.read_bytes() == NEW
        assert not list(folder.glob("*.tmp")), number
        shutil.rmtree(folder)
        if not died:
            break
        number += 1
    assert number > 20
    assert seen == sorted(seen, key=lambda content: content == NEW)  # first the old one, then the new one
