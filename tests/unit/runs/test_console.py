"""What is printed reaches person and record, and the person never notices the record."""

import io
import os
import sys
from contextlib import contextmanager

import pytest

from milepost.core.events import Line
from milepost.runs import console
from milepost.runs.console import ConsoleTee, append_console_log


@contextmanager
def screen():
    """Plain streams in the place of the test runner's, which it renews between fixtures and test."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        yield sys.stdout, sys.stderr
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def recorded():
    """The same with a tee on them; gives the lines that it gives away."""
    lines = []
    with screen():
        tee = ConsoleTee(lambda stream, text: lines.append((stream, text)))
        tee.install()
        yield lines
        tee.remove()


def test_lines_are_passed_on_unchanged_and_given_away_when_finished():
    lines = []
    with screen() as (out, err):
        tee = ConsoleTee(lambda stream, text: lines.append((stream, text)))
        tee.install()
        print("one")
        print("two", end="")
        print("three", file=sys.stderr)
        assert lines == [("stdout", "one"), ("stderr", "three")]
        print(" and more")
        assert lines[-1] == ("stdout", "two and more")
        tee.remove()
    assert out.getvalue() == "one\ntwo and more\n"
    assert err.getvalue() == "three\n"


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("10%\r20%\r100%\n", "100%"),
        ("a longer text\rshort\n", "shortger text"),
        ("a longer text\rshort        \n", "short"),
        ("windows\r\n", "windows"),
        ("gone\r    \n", ""),
    ],
)
def test_a_line_that_rewrote_itself_is_kept_as_the_terminal_left_it(written, seen):
    with recorded() as lines:
        sys.stdout.write(written)
    assert lines == [("stdout", seen)]


def test_a_progress_bar_that_never_ends_its_line_takes_no_memory():
    with recorded() as lines:
        for _ in range(20_000):
            sys.stdout.write("\r" + "#" * 50)
        assert len(sys.stdout._line) < 100_000
        print()
    assert lines[-1] == ("stdout", "#" * 50)


def test_an_unfinished_line_is_given_away_at_the_end_and_the_streams_are_put_back():
    found = []
    with screen() as (out, _):
        tee = ConsoleTee(lambda stream, text: found.append(text))
        tee.install()
        print("loose end", end="")
        tee.remove()
        assert found == ["loose end"]
        assert sys.stdout is out
        print("after")
    assert found == ["loose end"]


def test_tees_may_be_nested_and_removed_in_any_order():
    outer, inner = [], []
    first = ConsoleTee(lambda _, text: outer.append(text))
    second = ConsoleTee(lambda _, text: inner.append(text))
    with screen() as (out, _):
        first.install()
        second.install()
        print("both")
        first.remove()
        print("second only")
        second.remove()
        print("nobody")
    assert outer == ["both"]
    assert inner == ["both", "second only"]
    assert out.getvalue() == "both\nsecond only\nnobody\n"


def test_a_record_that_fails_or_prints_harms_no_print():
    def fails(stream, text):
        print("printed while recording")
        raise OSError("the disk is full")

    tee = ConsoleTee(fails)
    with screen() as (out, _):
        tee.install()
        print("one")
        print("two")
        tee.remove()
    assert out.getvalue() == "one\nprinted while recording\ntwo\nprinted while recording\n"


def test_the_stream_answers_like_the_one_it_stands_for():
    with recorded() as lines:
        assert sys.stdout.isatty() is False
        assert sys.stdout.encoding is None
        sys.stdout.writelines(["a\n", "b\n"])
        assert sys.stdout.writable()
    assert [text for _, text in lines] == ["a", "b"]


def test_what_the_wrapped_stream_refuses_the_person_hears():
    with recorded(), pytest.raises(TypeError):
        sys.stdout.write(b"bytes")


def test_there_is_an_end_to_what_is_kept(monkeypatch):
    monkeypatch.setattr(console, "_MOST_PER_RUN", 100)
    found = []
    with screen():
        tee = ConsoleTee(lambda _, text: found.append(text))
        tee.install()
        for _ in range(10):
            print("x" * 30)
        tee.remove()
    assert found[:-1] == ["x" * 30] * 4
    assert "not kept" in found[-1]


@pytest.mark.linux
def test_a_forked_child_gives_nothing_away_through_its_parents_record():
    ours, theirs = os.pipe()
    tee = ConsoleTee(lambda _, text: os.write(theirs, text.encode()))
    with screen():
        tee.install()
        child = os.fork()
        if child == 0:
            print("from the child")
            os._exit(0)
        os.waitpid(child, 0)
        print("from the parent")
        tee.remove()
    assert os.read(ours, 1000) == b"from the parent"
    os.close(ours)
    os.close(theirs)


def test_the_console_log_is_appended_and_its_length_told(tmp_path):
    path = tmp_path / "experiment.log"
    first = append_console_log(path, [(0.0, Line(stream="stdout", text="grüße"))])
    assert first == path.stat().st_size
    second = append_console_log(path, [(1.0, Line(stream="stderr", text="warned \udc80"))])
    assert second == path.stat().st_size
    one, two = path.read_text(encoding="utf-8").splitlines()
    assert one.endswith(" grüße")
    assert two.endswith(" ! warned ?")
