"""Who hears what milepost says?"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from milepost.core.saying import follow_debug_mode, keep_own_log, logger, say


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    root, handlers = logging.getLogger(), list(logger.handlers)
    levels = root.level, logger.level
    logger.setLevel(logging.NOTSET)
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    logger.setLevel(levels[1])


def test_what_is_said_is_one_line_at_the_terminal_and_one_in_our_own_log(tmp_path, capsys) -> None:
    keep_own_log(tmp_path, 7)
    say("no space left\non device", cure="free disk space", level=logging.INFO)
    assert capsys.readouterr().err == "milepost: no space left on device: free disk space\n"
    assert (tmp_path / "milepost-7.log").read_text().endswith(" no space left on device: free disk space\n")


@pytest.mark.parametrize(("root", "heard"), [(logging.DEBUG, True), (logging.WARNING, False)])
def test_debugging_is_heard_if_the_root_logger_wants_it_even_when_it_says_so_late(root: int, heard: bool) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    follow_debug_mode()
    logging.getLogger().setLevel(root)
    follow_debug_mode()
    assert logger.isEnabledFor(logging.DEBUG) is heard


def test_a_level_that_the_user_gave_our_logger_stays() -> None:
    logger.setLevel(logging.ERROR)
    logging.getLogger().setLevel(logging.DEBUG)
    follow_debug_mode()
    assert logger.level == logging.ERROR


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    keep_own_log(tmp_path / "file" / "logs", 7)


@pytest.mark.parametrize("stream", [None, object()])
def test_a_terminal_that_is_gone_is_no_error(monkeypatch, stream) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    say("a line")


def test_a_closed_terminal_and_a_text_it_cannot_encode_are_no_error(monkeypatch, tmp_path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        say("\U0001f600 \udcff")
    say("after it was closed")


def test_our_own_log_gets_every_line_once_however_often_it_was_asked_for(tmp_path, capsys) -> None:
    keep_own_log(tmp_path / "logs", 7)
    keep_own_log(tmp_path / "logs", 7)
    say("a line")
    (line,) = (tmp_path / "logs" / "milepost-7.log").read_text().splitlines()
    assert line.endswith("a line")


def test_a_log_folder_that_was_removed_costs_only_the_line_in_it(tmp_path, capsys) -> None:
    keep_own_log(tmp_path / "logs", 7)
    (tmp_path / "logs").rmdir()
    say("still said")
    assert capsys.readouterr().err == "milepost: still said\n"


@pytest.mark.linux
def test_a_disk_that_refuses_our_own_log_prints_no_traceback(tmp_path, capsys) -> None:
    (tmp_path / "milepost-7.log").symlink_to("/dev/full")
    keep_own_log(tmp_path, 7)
    say("still said")
    assert capsys.readouterr().err == "milepost: still said\n"
