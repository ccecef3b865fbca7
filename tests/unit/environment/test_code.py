from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from milepost.environment import code as subject
from milepost.environment.code import capture_code
from tests.unit.environment.repositories import git, repository


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return repository(tmp_path / "work")


def test_a_clean_tree_is_its_commit(work: Path, tmp_path: Path) -> None:
    record = capture_code(work / "package", tmp_path / "code")
    assert record.commit == git(work, "rev-parse", "HEAD")
    assert (record.branch, record.remote, record.root, record.absent) == ("main", "", str(work), "")
    assert not record.is_dirty
    assert list((tmp_path / "code").iterdir()) == []


def test_changes_staged_or_not_and_untracked_files_are_kept(work: Path, tmp_path: Path) -> None:
    (work / "train.py").write_text("print('other')\n")
    (work / "package" / "model.py").write_text("one\n")
    git(work, "add", "package/model.py")
    (work / "notes").mkdir()
    (work / "notes" / "idea.txt").write_text("larger batches\n")
    record = capture_code(work, tmp_path / "code")
    assert record.changed == ("package/model.py", "train.py")
    assert record.untracked == record.copied == ("notes/idea.txt",)
    assert (tmp_path / "code" / "untracked" / "notes" / "idea.txt").read_text() == "larger batches\n"
    assert "+print('other')" in (tmp_path / "code" / "changes.patch").read_text()
    assert git(work, "status", "--porcelain").splitlines() == ["M  package/model.py", " M train.py", "?? notes/"]


def test_what_is_not_kept_is_named_with_the_reason(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_LARGEST_PATCH", 500)
    monkeypatch.setattr(subject, "_LARGEST_COPY", 20)
    monkeypatch.setattr(subject, "_ALL_COPIES", 30)
    monkeypatch.setattr(subject, "_MOST_NAMES", 7)
    (work / "weights.bin").write_bytes(bytes(range(255)))
    (work / "train.py").write_text("1\n")
    (work / "package" / "model.py").write_text("2\n" * 300)
    files = {"a.txt": b"a" * 20, "b.txt": b"b" * 20, "c.txt": b"c" * 21, "d": b"\0", "e": b"\xff", ".env": b"A=1"}
    for name, content in files.items():
        (work / name).write_bytes(content)
    (work / "link").symlink_to("a.txt")
    (work / "more.txt").write_text("")
    record = capture_code(work, tmp_path / "code")
    assert record.changed == ("train.py",)
    assert record.copied == ("a.txt",)
    assert record.omitted == {
        "weights.bin": "binary",
        "package/model.py": "its difference is too large",
        ".env": "its name says that it holds secrets",
        "b.txt": "copies are limited to 0 MiB in all",
        "c.txt": "larger than 0 KiB",
        "d": "binary",
        "e": "binary",
        "link": "a symbolic link",
        "further untracked files": "only the first 7 are listed",
    }


def test_a_difference_without_end_is_not_read_to_its_end(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_LARGEST_DIFF", 100)
    (work / "train.py").write_text("1\n" * 300)
    record = capture_code(work, tmp_path / "code")
    assert "larger than" in record.omitted["all changes"]
    assert not (tmp_path / "code" / "changes.patch").exists()


def test_our_own_folders_are_no_code(work: Path, tmp_path: Path) -> None:
    (work / "metrics" / "a").mkdir(parents=True)
    (work / "metrics" / "a" / "log.json").write_text("{}")
    (work / "metrics.py").write_text("pass\n")
    target = work / "experiments" / "a" / "code"
    capture_code(work, target, leave_out=[work / "metrics"])
    record = capture_code(work, target, leave_out=[work / "metrics"])
    assert record.untracked == ("metrics.py",)


def test_a_second_capture_replaces_the_first(work: Path, tmp_path: Path) -> None:
    (work / "new.py").write_text("pass\n")
    (work / "train.py").write_text("pass\n")
    capture_code(work, tmp_path / "code")
    (work / "new.py").unlink()
    git(work, "checkout", "train.py")
    assert not capture_code(work, tmp_path / "code").is_dirty
    assert list((tmp_path / "code").iterdir()) == []


def test_names_that_are_no_text_can_still_be_recorded(work: Path, tmp_path: Path) -> None:
    with open(os.fsencode(work) + b"/\xff.txt", "w") as file:
        file.write("odd")
    record = capture_code(work, tmp_path / "code")
    assert record.untracked == ("\\udcff.txt",)
    assert msgspec.msgpack.encode(record.to_dict())
    assert os.listdir(os.fsencode(tmp_path / "code" / "untracked")) == [b"\xff.txt"]


@pytest.mark.parametrize("where", ["no git", "no repository", "no commit"])
def test_without_a_commit_the_script_is_kept(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    if where == "no commit":
        git(tmp_path, "init", "-q")
    script = tmp_path / "train.py"
    script.write_text("password = 'abc'\nrate = 1\n")
    record = capture_code(tmp_path, tmp_path / "code", script=str(script))
    assert record.absent
    assert (record.commit, record.script, record.redacted) == ("", "train.py", ("train.py",))
    assert (tmp_path / "code" / "script" / "train.py").read_text() == "password = '[redacted]'\nrate = 1\n"


def test_a_pipe_in_place_of_the_script_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    record = capture_code(tmp_path, tmp_path / "code", script=str(tmp_path / "pipe"))
    assert record.omitted == {"pipe": "no regular file"}


def test_a_script_that_is_gone_or_was_typed_is_no_error(tmp_path: Path) -> None:
    record = capture_code(tmp_path, tmp_path / "code", script=str(tmp_path / "gone.py"))
    assert list(record.omitted) == ["gone.py"]
    assert capture_code(tmp_path, tmp_path / "code").script == ""
    assert capture_code(tmp_path / "gone", tmp_path / "code").absent
