"""What is in a git diff, file by file, and how is it kept free of secrets and still applied?

A diff is redacted before it is stored. Its added lines then differ from the user's, which is said; its context and
removed lines must still match the commit, so :func:`mend` takes those from the commit again before the diff is applied.
Everything here is pure: text in, text out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from milepost.environment.secrets import MARK, redact

__all__ = ["Section", "is_secret_file", "mend", "sections"]

_SECRET_FILE = re.compile(
    r"(?i)\.env(?:$|\..*|rc$)|.*\.env|.*\.(?:pem|key|p12|pfx|jks|keystore|kdbx|ppk|asc|gpg|ovpn)|id_[^.]*(?:\.pub)?|.*_rsa|"
    r"\.netrc|\.npmrc|\.pypirc|\.pgpass|\.htpasswd|\.git-credentials|.*credentials.*|.*secrets?\.[a-z]+|kubeconfig"
)
_SECRET_FOLDER = re.compile(r"\.(?:ssh|aws|gnupg|kube|docker)")
_SOURCE_CODE = re.compile(r"(?i).*\.(?:py|pyi|ipynb|md|rst)")
_START = re.compile(r"^(?=diff --git )", re.MULTILINE)
_NAME = re.compile(r'^(?:---|\+\+\+) (?P<name>"?[ab]/.*?)\t?$', re.MULTILINE)
_FALLBACK_NAME = re.compile(r'diff --git "?a/.*? "?b/(?P<name>.*?)"?$', re.MULTILINE)
_HUNK = re.compile(r"@@ -(?P<start>\d+)(?:,\d+)? \+\d+(?:,\d+)? @@")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def is_secret_file(path: str) -> bool:
    """Whether a file is kept out by its name alone: keys, ``.env`` files, stored logins. Source code never is."""
    *folders, name = path.split("/")
    if any(_SECRET_FOLDER.fullmatch(folder) for folder in folders):
        return True
    return bool(_SECRET_FILE.fullmatch(name)) and not _SOURCE_CODE.fullmatch(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The part of a diff that is about one file.

    Attributes:
        name: Path of the file below the repository's root.
        header: Lines before the first hunk.
        body: Hunks; empty for a change of mode only, or of an empty file.
    """

    name: str
    header: str
    body: str

    @property
    def text(self) -> str:
        """The section as it stands in the diff."""
        return self.header + self.body

    @property
    def obstacle(self) -> str:
        """Why this section cannot be kept or applied, or nothing."""
        if is_secret_file(self.name):
            return "its name says that it holds secrets"
        if redact(self.header) != self.header:
            return "its name holds what looks like a secret"
        if "\nBinary files " in self.header or "\nGIT binary patch" in self.header:
            return "binary"
        return (
            "submodule" if re.search("(?m)^(?:new file mode|deleted file mode|index .*) 160000$", self.header) else ""
        )

    @property
    def leaving_link(self) -> str:
        """Target of the symbolic link that this section makes, if that leads out of the tree, or nothing."""
        if not re.search("(?m)^(?:new file mode|new mode|index .*) 120000$", self.header):
            return ""
        target = "\n".join(line[1:] for line in self.body.split("\n") if line.startswith("+"))
        place = posixpath.normpath(posixpath.join("tree", posixpath.dirname(self.name), target))
        return target if not place.startswith("tree/") or "\\" in target else ""

    def redacted(self) -> Section:
        """The section without secrets. What git reads, the head of a hunk and the sign of a line, is left alone."""
        body = "".join(_redacted_hunk(hunk) for hunk in re.split("^(?=@@ )", self.body, flags=re.MULTILINE))
        return Section(name=self.name, header=self.header, body=body)


def _redacted_hunk(hunk: str) -> str:
    head = _HUNK.match(hunk)
    if head is None:
        return hunk
    place, (context, *lines) = head[0], hunk[head.end() :].split("\n")
    shown = redact("\n".join(line[1:] for line in lines)).split("\n")
    signed = (line[:1] + rest for line, rest in zip(lines, shown, strict=True))
    return "\n".join([place + redact(context), *signed])


def sections(diff: str) -> Iterator[Section]:
    """Cut a diff made by ``git diff`` into its files."""
    for text in _START.split(diff):
        if text.startswith("diff --git "):
            first_hunk = re.search("^@@ ", text, re.MULTILINE)
            cut = first_hunk.start() if first_hunk else len(text)
            yield Section(name=_name(text[:cut]), header=text[:cut], body=text[cut:])


def _name(header: str) -> str:
    found = _NAME.findall(header)
    if found:
        return _unquoted(found[-1])[2:]
    fallback = _FALLBACK_NAME.search(header)
    return _unquoted(f'"{fallback["name"]}"') if fallback else ""


def _unquoted(name: str) -> str:
    """Undo the quoting that git gives names with quotes, backslashes and control characters."""
    if not name.startswith('"'):
        return name

    def plain(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code, 8)) if code.isdigit() else _ESCAPES.get(code, code)

    return re.sub(r"\\([0-7]{3}|.)", plain, name[1:-1])


def mend(section: Section, content_of: Callable[[str], str | None]) -> Section:
    """Give redacted context and removed lines back what the commit has in their place.

    Args:
        section: As stored.
        content_of: Gives the text of a file of the commit, or None if there is none.
    """
    if MARK not in section.body:
        return section
    content = content_of(section.name)
    if content is None:
        return section
    body = "\n".join(_mended(section.body.split("\n"), content.split("\n")))
    return Section(name=section.name, header=section.header, body=body)


def _mended(lines: list[str], original: list[str]) -> Iterator[str]:
    at = 0
    for line in lines:
        hunk = _HUNK.match(line)
        if hunk:
            at = int(hunk["start"]) - 1
            yield line
        elif line[:1] in {" ", "-"}:
            is_redacted = MARK in line and 0 <= at < len(original)
            yield line[0] + original[at] if is_redacted else line
            at += 1
        else:
            yield line
