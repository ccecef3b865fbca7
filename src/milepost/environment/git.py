"""How is git asked without it asking back, hanging, or running what a repository tells it to run?

A repository's own configuration can name programs that git starts on its own: a file system monitor, hooks, filters,
diff drivers. All of them are switched off for our questions, except what stands in the user's own configuration (there
``git lfs install`` writes). No question reaches the network or a terminal, and every one ends in bounded time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Answer", "Git", "repository_of"]

_SETTINGS = (
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
    "core.pager=cat",
    "core.quotePath=false",
    "core.alternateRefsCommand=",
    "credential.helper=",
    "diff.external=",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
    "diff.suppressBlankEmpty=false",
    f"diff.orderFile={os.devnull}",
    "protocol.allow=never",
    "submodule.recurse=false",
)
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "",
    "LC_ALL": "C",
}
#: Settings of a repository that name programs, in the spelling ``git config --list`` gives them.
_PROGRAM = re.compile(r"(?s)(?P<filter>filter\..*)\.(?:clean|smudge|process)|diff\..*\.(?:command|textconv)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What git said. ``error`` is empty if it succeeded, else one line; ``cut`` means there was more than the limit."""

    output: bytes = b""
    error: str = ""
    cut: bool = False

    @property
    def text(self) -> str:
        """The output as one stripped text; bytes that are no UTF-8 survive as surrogates."""
        return os.fsdecode(self.output).strip()


class Git:
    """Asks git about the repository that ``folder`` is in.

    Args:
        folder: Where git runs.
        variables: Added to its environment, for example ``GIT_WORK_TREE``.
    """

    def __init__(self, folder: str | os.PathLike[str], variables: Mapping[str, str] | None = None) -> None:
        self._folder = os.fspath(folder)
        # What an outer git left there, for example one whose hook started the training, means another repository.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self._environment = inherited | _ENVIRONMENT | dict(variables or {})
        self._settings: list[str] | None = None

    def ask(self, *arguments: str, timeout: float = 10.0, limit: int = 1 << 20, given: bytes | None = None) -> Answer:
        """Run ``git <arguments>``.

        Args:
            *arguments: Subcommand and what follows it.
            timeout: Seconds after which it is killed.
            limit: Bytes of output after which it is killed.
            given: Bytes on its standard input.
        """
        if shutil.which("git") is None:
            return Answer(error="git is not installed")
        if self._settings is None:
            programs = self._programs(timeout)
            if any("=" in key for key in programs):
                # git splits "key=value" at the first "=", so this one cannot be switched off.
                return Answer(error="the repository's configuration starts programs under unusual names")
            self._settings = [*_SETTINGS, *_switched_off(programs)]
        return self._run([*_options(self._settings), *arguments], timeout, limit, given)

    def _programs(self, timeout: float) -> list[str]:
        """Settings of this repository, not of the user, that name a program. Listing settings runs nothing."""
        keys: list[str] = []
        for scope in ("--local", "--worktree"):
            listed = self._run(["config", scope, "--includes", "--name-only", "--list", "-z"], timeout, 1 << 20, None)
            keys += os.fsdecode(listed.output).split("\0")
        return [key for key in keys if _PROGRAM.fullmatch(key)]

    def _run(self, arguments: Sequence[str], timeout: float, limit: int, given: bytes | None) -> Answer:
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as source:
            source.write(given or b"")
            source.seek(0)
            try:
                process = subprocess.Popen(
                    ["git", *arguments],
                    cwd=self._folder,
                    env=self._environment,
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            except OSError as error:
                return Answer(error=f"git could not be started ({error.strerror})")
            output, timed_out = _read(process, timeout, limit)
            errors.seek(0)
            said = errors.read(4096).decode(errors="replace").strip().splitlines()
        if timed_out:
            return Answer(error=f"git {arguments[-1]} did not answer in {timeout:g} s")
        if len(output) > limit:
            return Answer(output=output[:limit], cut=True)
        if process.returncode != 0:
            return Answer(output=output, error=said[0] if said else f"git ended with {process.returncode}")
        return Answer(output=output)


def _switched_off(programs: Sequence[str]) -> list[str]:
    filters = {found["filter"] for key in programs if (found := _PROGRAM.fullmatch(key)) and found["filter"]}
    return [f"{key}=" for key in programs] + [f"{name}.required=false" for name in sorted(filters)]


def _options(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("-c", setting)]


def _read(process: subprocess.Popen[bytes], timeout: float, limit: int) -> tuple[bytes, bool]:
    assert process.stdout is not None
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    with process.stdout as stream:
        output = stream.read(limit + 1)
        if len(output) > limit:
            process.kill()
    process.wait()
    timer.cancel()
    return output, timed_out.is_set()


def repository_of(folder: Path) -> tuple[Path | None, str]:
    """Root of the repository that holds ``folder``, or None and why there is none."""
    answer = Git(folder).ask("rev-parse", "--show-toplevel")
    if answer.error:
        return None, answer.error
    root, here = Path(answer.text).resolve(), folder.resolve()
    if root != here and root not in here.parents:
        return None, f"the repository's work tree is elsewhere ({root})"
    return root, ""
