"""Which code ran, so that it can be had again?

The commit, the difference to it, and small untracked files, all redacted, in the ``code`` folder of the run. Without
git, without a repository, or before the first commit, that is recorded and the script alone is copied. Nothing here
fails a run: what cannot be kept is named with the reason.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from milepost.environment.checkout import Restored, restore_code
from milepost.environment.code_record import COPIES, PATCH, SCRIPT, CodeRecord, describe
from milepost.environment.git import Git, repository_of
from milepost.environment.patch import Section, is_secret_file, sections
from milepost.environment.secrets import redact

__all__ = ["CodeRecord", "Restored", "capture_code", "describe", "restore_code"]

_LARGEST_DIFF = 16 << 20
_LARGEST_PATCH = 4 << 20
_LARGEST_COPY = 64 << 10
_LARGEST_SCRIPT = 1 << 20
_ALL_COPIES = 2 << 20
_MOST_NAMES = 1000
_DIFF = (
    "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--full-index", "--submodule=short",
    "--ignore-submodules=dirty", "--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "HEAD", "--",
)  # fmt: skip


@dataclass(slots=True)
class _Kept:
    """What goes into the record while the folder is filled."""

    folder: Path
    changed: list[str] = field(default_factory=list)
    untracked: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    redacted: list[str] = field(default_factory=list)
    omitted: dict[str, str] = field(default_factory=dict)


def capture_code(
    cwd: str | os.PathLike[str],
    target_folder: str | os.PathLike[str],
    *,
    script: str = "",
    leave_out: Iterable[str | os.PathLike[str]] = (),
) -> CodeRecord:
    """Keep the code that runs.

    Args:
        cwd: Working folder of the training; its repository is the one that is recorded.
        target_folder: The ``code`` folder of the run. Made if needed; what an earlier capture left there is replaced.
        script: The script that runs, kept where there is no commit to get it from.
        leave_out: Folders whose content is no code: those that milepost itself writes to.

    Raises:
        OSError: The target folder cannot be written.
    """
    kept = _Kept(Path(target_folder))
    kept.folder.mkdir(parents=True, exist_ok=True)
    _clear(kept.folder)
    root, absent = repository_of(Path(cwd))
    if root is None:
        return _record_of_script(kept, script, redact(absent))
    git = Git(root)
    commit = git.ask("rev-parse", "--verify", "HEAD")
    if commit.error:
        return _record_of_script(kept, script, "the repository has no commit yet")
    _keep_changes(git, kept)
    _keep_untracked(git, root, [Path(target_folder), *map(Path, leave_out)], kept)
    return CodeRecord(
        commit=commit.text,
        branch=redact(git.ask("symbolic-ref", "--short", "--quiet", "HEAD").text),
        remote=redact(_remote(git)),
        root=_printable(str(root)),
        changed=tuple(kept.changed),
        untracked=tuple(kept.untracked),
        copied=tuple(kept.copied),
        redacted=tuple(kept.redacted),
        omitted=kept.omitted,
    )


def _clear(folder: Path) -> None:
    (folder / PATCH).unlink(missing_ok=True)
    for name in (COPIES, SCRIPT):
        shutil.rmtree(folder / name, ignore_errors=True)


def _remote(git: Git) -> str:
    origin = git.ask("config", "--get", "remote.origin.url")
    if origin.text:
        return origin.text
    listed = git.ask("config", "--get-regexp", r"^remote\..*\.url$").text
    return listed.partition("\n")[0].partition(" ")[2]


def _keep_changes(git: Git, kept: _Kept) -> None:
    answer = git.ask(*_DIFF, timeout=30.0, limit=_LARGEST_DIFF)
    if answer.error or answer.cut:
        kept.omitted["all changes"] = answer.error or f"the difference is larger than {_LARGEST_DIFF >> 20} MiB"
        return
    # Whole files are left out rather than the end of the diff, so that what is kept applies.
    found = list(sections(os.fsdecode(answer.output)))
    room = _LARGEST_PATCH
    fitting: set[str] = set()
    for section in sorted(found, key=lambda section: len(section.text)):
        name = _shown(section.name)
        if section.obstacle:
            kept.omitted[name] = section.obstacle
        elif len(section.text) > room:
            kept.omitted[name] = "its difference is too large"
        else:
            room -= len(section.text)
            fitting.add(section.name)
    _write_patch([section for section in found if section.name in fitting], kept)


def _write_patch(chosen: Sequence[Section], kept: _Kept) -> None:
    stored = [section.redacted() for section in chosen]
    kept.changed += [_shown(section.name) for section in chosen]
    kept.redacted += [_shown(was.name) for was, now in zip(chosen, stored, strict=True) if was != now]
    if stored:
        (kept.folder / PATCH).write_bytes(os.fsencode("".join(section.text for section in stored)))


def _keep_untracked(git: Git, root: Path, leave_out: Sequence[Path], kept: _Kept) -> None:
    answer = git.ask("ls-files", "--others", "--exclude-standard", "-z", timeout=30.0, limit=4 << 20)
    if answer.error:
        kept.omitted["untracked files"] = answer.error
        return
    outside = [os.path.join(os.path.realpath(folder), "") for folder in leave_out]
    names = [
        name
        for name in os.fsdecode(answer.output).split("\0")
        if name and not os.path.join(root, name).startswith(tuple(outside))
    ]
    room = _ALL_COPIES
    for name in names[:_MOST_NAMES]:
        kept.untracked.append(_shown(name))
        obstacle, size = _copy(root / name, name, room, kept)
        room -= size
        if obstacle:
            kept.omitted[_shown(name)] = obstacle
    if len(names) > _MOST_NAMES or answer.cut:
        kept.omitted["further untracked files"] = f"only the first {_MOST_NAMES} are listed"


def _copy(source: Path, name: str, room: int, kept: _Kept) -> tuple[str, int]:
    """Copy one untracked file; return why not, and the bytes it took."""
    if is_secret_file(name):
        return "its name says that it holds secrets", 0
    if redact(name) != name:
        return "its name holds what looks like a secret", 0
    content, obstacle = _read_text(source, _LARGEST_COPY)
    if obstacle:
        return obstacle, 0
    if len(content) > room:
        return f"copies are limited to {_ALL_COPIES >> 20} MiB in all", 0
    _write_redacted(kept.folder / COPIES / name, content, kept, name)
    kept.copied.append(_shown(name))
    return "", len(content)


def _read_text(source: Path, largest: int) -> tuple[str, str]:
    """The text of a regular file, or why it is not taken. Never waits, as opening a pipe would."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(source, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return "", "no regular file"
            if status.st_size > largest:
                return "", f"larger than {largest >> 10} KiB"
            content = file.read(largest).decode()
    except UnicodeDecodeError:
        return "", "binary"
    except OSError as error:
        return "", "a symbolic link" if source.is_symlink() else f"cannot be read ({error.strerror})"
    return ("", "binary") if "\0" in content else (content, "")


def _write_redacted(target: Path, content: str, kept: _Kept, name: str) -> None:
    shown = redact(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(shown.encode())
    if shown != content:
        kept.redacted.append(_shown(name))


def _record_of_script(kept: _Kept, script: str, absent: str) -> CodeRecord:
    name = os.path.basename(script)
    if not name:
        return CodeRecord(absent=absent, omitted={})
    content, obstacle = _read_text(Path(os.path.realpath(script)), _LARGEST_SCRIPT)
    if redact(name) != name:
        obstacle = "its name holds what looks like a secret"
    if obstacle:
        return CodeRecord(absent=absent, omitted={_shown(name): obstacle})
    _write_redacted(kept.folder / SCRIPT / name, content, kept, name)
    return CodeRecord(absent=absent, script=_shown(name), redacted=tuple(kept.redacted), omitted={})


def _shown(name: str) -> str:
    return redact(_printable(name))


def _printable(name: str) -> str:
    """A name that every encoder of the record accepts, also when its bytes are no UTF-8."""
    return name.encode(errors="backslashreplace").decode()
