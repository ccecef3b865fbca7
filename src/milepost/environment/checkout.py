"""How does the code of a run become a folder again?

The commit comes from the user's repository, the rest from the run's ``code`` folder. That folder may come from anybody,
so every name in it is taken for hostile.

**Invariants**: nothing is written outside the new folder, nothing under a name that git would read as a repository's
(``.git``), nothing through a symbolic link, and nothing over a file that exists. The repository, its index and its work
tree are only read. The new folder appears whole or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError, StorageError
from milepost.environment.code_record import COPIES, PATCH, SCRIPT, CodeRecord
from milepost.environment.git import Git, repository_of
from milepost.environment.patch import Section, mend, sections
from milepost.environment.secrets import MARK
from milepost.io.durable import storage_error

__all__ = ["Restored", "restore_code"]

_PATIENCE = 600.0
_LARGEST_FILE = 64 << 20
_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What :func:`restore_code` made. ``notes`` says in sentences what is not as it was."""

    folder: Path
    commit: str
    notes: tuple[str, ...]


def restore_code(
    record: CodeRecord,
    source_repo: str | os.PathLike[str],
    code_folder: str | os.PathLike[str],
    new_folder: str | os.PathLike[str],
) -> Restored:
    """Restore commit, changes and small untracked files of a run to a new folder.

    Args:
        record: What is known about the code.
        source_repo: A folder inside a repository that has the commit; not looked at if the record has none.
        code_folder: The ``code`` folder of the run.
        new_folder: Must not exist, or be empty.

    Raises:
        InvalidInputError: The new folder exists and is not empty.
        NotFoundError: No repository there, or it lacks the commit; or nothing of the code was kept.
        CorruptDataError: The stored changes do not apply, or a stored name leaves the folder.
        StorageError: The folder cannot be written.
    """
    target = Path(new_folder).absolute()
    if os.path.lexists(target) and not (target.is_dir() and not target.is_symlink() and not any(target.iterdir())):
        raise InvalidInputError(f"{target} exists and is not empty", cure="name a new folder")
    kept = Path(code_folder)
    if not record.commit and not (kept / SCRIPT).is_dir():
        raise NotFoundError(
            f"no code of this run was kept ({record.absent})", cure="start runs inside a git repository"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as building:
            tree = Path(building) / "tree"
            tree.mkdir()
            notes = _build(record, Path(source_repo), kept, tree, Path(building) / "index")
            if target.is_dir():
                target.rmdir()
            tree.rename(target)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise storage_error(error, "restoring code", target) from error
    return Restored(folder=target, commit=record.commit, notes=tuple(notes))


def _build(record: CodeRecord, source: Path, kept: Path, tree: Path, index: Path) -> list[str]:
    notes = [f"{name} was not kept: {reason}" for name, reason in record.omitted.items()]
    notes += [f"{name} has {MARK} in place of what looked like secrets" for name in record.redacted]
    if record.commit:
        git = _git_for(record.commit, source, tree, index)
        notes += _write_commit(git, record.commit)
        notes += _apply(git, record.commit, kept / PATCH)
        notes += _copy_files(kept / COPIES, tree)
    else:
        notes += _copy_files(kept / SCRIPT, tree)
    return notes


def _git_for(commit: str, source: Path, tree: Path, index: Path) -> Git:
    """Git with the objects of the user's repository, but an index and a work tree of our own."""
    if not _COMMIT.fullmatch(commit):
        raise CorruptDataError(f"the recorded commit is {commit[:80]!r}", cure="mend the run's metadata.json")
    root, why = repository_of(source) if source.is_dir() else (None, "no such folder")
    if root is None:
        raise NotFoundError(f"no repository at {source} ({why})", cure="name a clone of the repository")
    folder = Git(root).ask("rev-parse", "--absolute-git-dir").text
    variables = {"GIT_DIR": folder, "GIT_WORK_TREE": str(tree), "GIT_INDEX_FILE": str(index)}
    git = Git(tree, variables)
    if git.ask("cat-file", "-e", f"{commit}^{{commit}}").error:
        raise NotFoundError(f"the repository at {root} lacks the commit {commit}", cure="run git fetch there")
    return git


def _write_commit(git: Git, commit: str) -> list[str]:
    for arguments in (("read-tree", commit), ("checkout-index", "--all")):
        answer = git.ask(*arguments, timeout=_PATIENCE)
        if answer.error:
            raise StorageError(f"git {arguments[0]} failed ({answer.error})", cure="run git fsck in the repository")
    staged = git.ask("ls-files", "--stage", "-z", limit=256 << 20).output.split(b"\0")
    modules = [os.fsdecode(entry.partition(b"\t")[2]) for entry in staged if entry.startswith(b"160000 ")]
    return [f"the submodule {name} was not restored" for name in modules]


def _apply(git: Git, commit: str, patch: Path) -> list[str]:
    if not patch.is_file() or patch.is_symlink():
        return []

    def content_of(name: str) -> str | None:
        answer = git.ask("cat-file", "blob", f"{commit}:{name}", limit=_LARGEST_FILE)
        return None if answer.error or answer.cut else os.fsdecode(answer.output)

    chosen: list[Section] = []
    notes: list[str] = []
    for section in sections(os.fsdecode(patch.read_bytes())):
        link = section.leaving_link
        if link:
            notes.append(f"{section.name} was left out: it would link to {link}")
        else:
            chosen.append(mend(section, content_of))
    given = os.fsencode("".join(section.text for section in chosen))
    answer = git.ask("apply", "--whitespace=nowarn", "-", given=given, timeout=_PATIENCE) if given else None
    if answer is not None and answer.error:
        raise CorruptDataError(f"{patch} does not apply ({answer.error})", cure="check out the commit without it")
    return notes


def _copy_files(source: Path, tree: Path) -> list[str]:
    notes: list[str] = []
    for file, parts in _files(source):
        name = "/".join(parts)
        target = tree.joinpath(*parts)
        if any(part.lower().rstrip(". ") == ".git" or "git~" in part.lower() for part in parts):
            raise CorruptDataError(
                f"a stored copy is named {name!r}", cure="somebody changed it: do not trust this run"
            )
        if not _has_real_parents(tree, parts) or os.path.lexists(target):
            notes.append(f"{name} was left out: something else is in its place")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target, follow_symlinks=False)
    return notes


def _files(source: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Regular files below a folder; links are neither followed nor given."""
    if source.is_symlink():
        return
    for folder, _, names in os.walk(source):
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file() and not file.is_symlink():
                yield file, file.relative_to(source).parts


def _has_real_parents(tree: Path, parts: tuple[str, ...]) -> bool:
    """Whether every folder on the way is a folder, or still to be made. Nobody else can change the tree meanwhile."""
    parents = [tree.joinpath(*parts[:depth]) for depth in range(1, len(parts))]
    return all(not os.path.lexists(parent) or (parent.is_dir() and not parent.is_symlink()) for parent in parents)
