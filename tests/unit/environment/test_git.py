from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from milepost.environment.git import Git, repository_of
from tests.unit.environment.repositories import git, repository


def test_an_answer_is_the_output_or_one_line_that_says_why_not(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    assert Git(root).ask("symbolic-ref", "--short", "HEAD").text == "main"
    assert Git(root).ask("cat-file", "-e", "0" * 40).error
    assert "git-directory" in Git(tmp_path).ask("git-directory").error
    assert Git(tmp_path / "nowhere").ask("status").error.startswith("git could not be started")


def test_output_ends_at_the_limit(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    answer = Git(root).ask("show", "HEAD:package/model.py", limit=10)
    assert (answer.output, answer.cut, answer.error) == (b"line 0\nlin", True, "")


def test_a_git_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 100\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    assert "did not answer" in Git(tmp_path).ask("status", timeout=0.05).error


def test_without_git_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Git(tmp_path).ask("status").error == "git is not installed"
    assert repository_of(tmp_path) == (None, "git is not installed")


def test_an_outer_git_does_not_redirect_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = repository(tmp_path / "work"), repository(tmp_path / "other")
    git(other, "branch", "-m", "elsewhere")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert Git(root).ask("symbolic-ref", "--short", "HEAD").text == "main"
    assert repository_of(root) == (root, "")


def test_questions_leave_the_index_alone(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    before = (root / ".git" / "index").read_bytes()
    os.utime(root / "train.py", (1, 1))  # git would note that the content is the same after all
    assert Git(root).ask("status", "--porcelain").output == b""
    assert (root / ".git" / "index").read_bytes() == before


def test_a_work_tree_elsewhere_is_not_taken_for_the_code(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    (tmp_path / "private").mkdir()
    git(root, "config", "core.worktree", str(tmp_path / "private"))
    found, why = repository_of(root)
    assert found is None
    assert why


def test_programs_that_a_repository_names_do_not_run(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-$1\ncat\n")
    trap.chmod(trap.stat().st_mode | stat.S_IXUSR)
    (root / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
    included = root / "more.config"
    included.write_text(f'[filter "second"]\n\tclean = {trap} included\n')
    for key, value in {
        "core.fsmonitor": f"{trap} fsmonitor",
        "core.hooksPath": str(tmp_path),
        "filter.evil.clean": f"{trap} clean",
        "filter.evil.smudge": f"{trap} smudge",
        "filter.evil.required": "true",
        "diff.evil.textconv": f"{trap} textconv",
        "diff.evil.command": f"{trap} command",
        "diff.external": f"{trap} external",
        "include.path": str(included),
    }.items():
        git(root, "config", key, value)
    (root / "train.py").write_text("print('changed')\n")
    asking = Git(root)
    diff = asking.ask("diff", "--no-ext-diff", "--no-textconv", "HEAD")
    assert "+print('changed')" in diff.text
    assert asking.ask("status", "--porcelain").error == ""
    assert asking.ask("checkout-index", "--all", f"--prefix={tmp_path}/out/").error == ""
    assert not list(tmp_path.glob("ran-*"))


def test_a_program_that_cannot_be_switched_off_ends_the_questions(tmp_path: Path) -> None:
    root = repository(tmp_path / "work")
    with (root / ".git" / "config").open("a") as config:
        config.write('[filter "a=b"]\n\tclean = cat\n')
    assert "unusual names" in Git(root).ask("status").error
