"""Does the lint of recorded calls tell a right order from a wrong one?"""

from __future__ import annotations

import re

from torture.lint import Rules, broken_rules
from torture.operation_log import Operation, parse

RULES = Rules(folder="/s", need_no_sync=(re.compile(r"guest-.*\.json"),))

COMMIT = """\
7 openat(AT_FDCWD</w>, "/s/c/.a.tmp", O_WRONLY|O_CREAT|O_EXCL, 0666) = 9</s/c/.a.tmp>
8 pwrite64(9</s/c/.a.tmp>, "\\1\\2", 2, 0 <unfinished ...>
7 write(5</s/m/wal.mlog>, "hello", 5) = 5
8 <... pwrite64 resumed>)           = 2
7 fsync(9</s/c/.a.tmp>)             = 0
7 renameat2(AT_FDCWD</w>, "/s/c/.a.tmp", AT_FDCWD</w>, "/s/c/a.milepost", RENAME_NOREPLACE) = 0
7 fsync(9</s/c>)                    = 0
7 write(5</s/m/wal.mlog>, "\\251committed\\252a.milepost", 21) = 21
"""


def lint(text: str) -> list[str]:
    return broken_rules(parse(text), RULES)


def moved(line: str, behind: str) -> str:
    """The recording with the line that holds ``line`` put behind the one that holds ``behind``."""
    lines = COMMIT.splitlines()
    taken = next(text for text in lines if line in text)
    lines.remove(taken)
    place = next(number for number, text in enumerate(lines) if behind in text)
    return "\n".join([*lines[: place + 1], taken, *lines[place + 1 :]])


def test_a_recording_is_read_call_by_call_with_those_that_overlap() -> None:
    assert parse(COMMIT)[2] == Operation(action="write", path="/s/c/.a.tmp", data=b"\x01\x02", begun=1, ended=3)
    assert [operation.action for operation in parse(COMMIT)] == [
        "create", "write", "write", "sync", "rename", "sync", "write",
    ]  # fmt: skip


def test_write_sync_rename_sync_report_is_the_right_order() -> None:
    assert lint(COMMIT) == []


def test_a_name_before_the_content_is_noticed() -> None:
    assert lint(moved("fsync(9</s/c/.a.tmp>)", behind="renameat2")) == [
        "a.milepost got its name before its content was synced"
    ]


def test_a_write_that_ends_after_the_sync_began_is_noticed() -> None:
    assert lint(moved("pwrite64 resumed", behind="fsync(9</s/c/.a.tmp>)")) == [
        "a.milepost got its name before its content was synced"
    ]


def test_a_folder_that_is_never_synced_is_noticed() -> None:
    recording = "\n".join(line for line in COMMIT.splitlines() if "fsync(9</s/c>)" not in line)
    assert lint(recording)[0] == "the folder of a.milepost was not synced after the rename"


def test_a_report_before_the_folder_is_synced_is_noticed() -> None:
    assert lint(moved("fsync(9</s/c>)", behind="committed")) == [
        "a.milepost was reported as committed before its folder was synced"
    ]


def test_a_failed_call_has_done_nothing() -> None:
    failed = COMMIT.replace(
        "fsync(9</s/c/.a.tmp>)             = 0", "fsync(9</s/c/.a.tmp>) = -1 EIO (Input/output error)"
    )
    assert lint(failed) == ["a.milepost got its name before its content was synced"]


def test_what_may_be_lost_by_design_needs_no_sync() -> None:
    cursor = '7 rename("/s/m/.guest-x.json.tmp", "/s/m/guest-x.json") = 0\n'
    assert lint(COMMIT + cursor) == []


def test_an_empty_recording_is_not_taken_for_a_good_one() -> None:
    assert lint("") == ["nothing was renamed: the recording is empty"]
