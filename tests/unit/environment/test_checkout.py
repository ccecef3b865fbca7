from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from milepost.environment.code import CodeRecord, capture_code, restore_code
from tests.unit.environment.repositories import git, repository, tree


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return repository(tmp_path / "work")


def _change_everything(work: Path) -> None:
    model = work / "package" / "model.py"
    model.write_text(model.read_text().replace("line 3\n", "other\n").replace("line 29\n", "end without a line feed"))
    (work / "train.py").chmod(0o644)
    (work / "added.py").write_text("été = '\\r'\r\nx\n")
    git(work, "add", "added.py")
    (work / 'sp ace "q" é.txt').write_text("odd name\n")
    git(work, "add", ".")
    (work / "empty.txt").write_text("")
    git(work, "mv", "latest", "newest")
    (work / "deep" / "er").mkdir(parents=True)
    (work / "deep" / "er" / "new.py").write_text("pass\n")


def test_commit_changes_and_untracked_files_come_back_as_they_were(work: Path, tmp_path: Path) -> None:
    _change_everything(work)
    record = capture_code(work, tmp_path / "code")
    status = git(work, "status", "--porcelain")
    # The work goes on: another commit, other changes.
    was = tree(work)
    git(work, "add", ".")
    git(work, "commit", "-q", "-m", "later")
    (work / "train.py").write_text("later\n")
    restored = restore_code(record, work / "package", tmp_path / "code", tmp_path / "a" / "again")
    assert tree(tmp_path / "a" / "again") == was
    assert restored.notes == ()
    assert restored.folder == tmp_path / "a" / "again"
    assert status
    assert git(work, "status", "--porcelain") == "M train.py"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["again"]


def test_a_folder_inside_another_repository_is_filled_all_the_same(work: Path, tmp_path: Path) -> None:
    _change_everything(work)
    record = capture_code(work, tmp_path / "code")
    was = tree(work)
    (work / "data" / "again").mkdir()  # an empty folder may be there already
    restore_code(record, work, tmp_path / "code", work / "data" / "again")
    assert tree(work / "data" / "again") == was


def test_only_a_new_or_empty_folder_is_filled(work: Path, tmp_path: Path) -> None:
    record = capture_code(work, tmp_path / "code")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (work, work / "train.py", tmp_path / "link"):
        with pytest.raises(InvalidInputError, match="exists and is not empty"):
            restore_code(record, work, tmp_path / "code", place)


def test_what_is_missing_is_named(work: Path, tmp_path: Path) -> None:
    record = capture_code(work, tmp_path / "code")
    with pytest.raises(NotFoundError, match="no repository at"):
        restore_code(record, tmp_path / "gone", tmp_path / "code", tmp_path / "new")
    with pytest.raises(NotFoundError, match="lacks the commit"):
        restore_code(replace(record, commit="0" * 40), work, tmp_path / "code", tmp_path / "new")
    with pytest.raises(NotFoundError, match="no code of this run was kept"):
        restore_code(CodeRecord(absent="no git", omitted={}), work, tmp_path / "code", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_script_alone_comes_back(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("pass\n")
    record = capture_code(tmp_path, tmp_path / "code", script=str(script))
    restore_code(record, tmp_path, tmp_path / "code", tmp_path / "new")
    assert (tmp_path / "new" / "train.py").read_text() == "pass\n"


class TestHostileStore:
    """The record and the ``code`` folder come from somebody else."""

    @pytest.mark.parametrize("commit", ["--upload-pack=x", "HEAD", "main", "a" * 39, "A" * 40, "../x"])
    def test_only_a_whole_commit_name_reaches_git(self, commit: str, work: Path, tmp_path: Path) -> None:
        with pytest.raises(CorruptDataError, match="the recorded commit is"):
            restore_code(CodeRecord(commit=commit, omitted={}), work, tmp_path / "code", tmp_path / "new")

    @pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/tmp/outside", ".git/config", ".GIT/x"])
    def test_a_patch_cannot_write_elsewhere(self, name: str, work: Path, tmp_path: Path) -> None:
        record = capture_code(work, tmp_path / "code")
        header = (
            f"diff --git a/{name} b/{name}\nnew file mode 100644\nindex 0000000..1111111\n--- /dev/null\n+++ b/{name}\n"
        )
        (tmp_path / "code" / "changes.patch").write_text(f"{header}@@ -0,0 +1 @@\n+x\n")
        before = tree(tmp_path)
        with pytest.raises(CorruptDataError, match="does not apply"):
            restore_code(record, work, tmp_path / "code", tmp_path / "new")
        assert tree(tmp_path) == before

    def test_links_out_of_the_folder_are_left_out(self, work: Path, tmp_path: Path) -> None:
        (work / "out").symlink_to("/etc")
        (work / "inside").symlink_to("package/model.py")
        git(work, "add", ".")
        record = capture_code(work, tmp_path / "code")
        restored = restore_code(record, work, tmp_path / "code", tmp_path / "new")
        assert not (tmp_path / "new" / "out").is_symlink()
        assert (tmp_path / "new" / "inside").is_symlink()
        assert restored.notes == ("out was left out: it would link to /etc",)

    def test_a_copy_is_not_written_through_a_link_or_over_a_file(self, work: Path, tmp_path: Path) -> None:
        (tmp_path / "victim").mkdir()
        (work / "door").symlink_to(tmp_path / "victim")
        git(work, "add", "door")
        git(work, "commit", "-q", "-m", "a link out of the repository")
        record = capture_code(work, tmp_path / "code")
        copies = tmp_path / "code" / "untracked"
        (copies / "door").mkdir(parents=True)
        (copies / "door" / "x.txt").write_text("x")
        (copies / "train.py").write_text("evil\n")
        restored = restore_code(record, work, tmp_path / "code", tmp_path / "new")
        assert list((tmp_path / "victim").iterdir()) == []
        assert (tmp_path / "new" / "train.py").read_text() == "print('train')\n"
        assert len(restored.notes) == 2

    def test_links_among_the_copies_are_not_followed(self, work: Path, tmp_path: Path) -> None:
        record = capture_code(work, tmp_path / "code")
        (tmp_path / "private").mkdir()
        (tmp_path / "private" / "key").write_text("private")
        copies = tmp_path / "code" / "untracked"
        copies.mkdir()
        (copies / "key").symlink_to(tmp_path / "private" / "key")
        (copies / "folder").symlink_to(tmp_path / "private")
        restore_code(record, work, tmp_path / "code", tmp_path / "new")
        assert tree(tmp_path / "new") == tree(work)

    @pytest.mark.parametrize("name", [".git/config", "a/.Git/hooks/post-checkout", "git~1/config"])
    def test_a_copy_cannot_make_a_repository(self, name: str, work: Path, tmp_path: Path) -> None:
        record = capture_code(work, tmp_path / "code")
        evil = tmp_path / "code" / "untracked" / name
        evil.parent.mkdir(parents=True)
        evil.write_text("[core]\nfsmonitor = evil\n")
        with pytest.raises(CorruptDataError, match="do not trust"):
            restore_code(record, work, tmp_path / "code", tmp_path / "new")
        assert not (tmp_path / "new").exists()
