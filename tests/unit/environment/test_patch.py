from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.environment.patch import is_secret_file, mend, sections
from milepost.environment.secrets import MARK

_HEAD = "diff --git a/{0} b/{0}\nindex 1..2 100644\n--- a/{0}\n+++ b/{0}\n"
_DIFF = (
    _HEAD.format("a.py")
    + '@@ -2,3 +2,3 @@ password = "abc"\n one\n-password: "hunter2"\n+password: "hunter3"\n two\n'
    + "@@ -9 +9 @@\n-PASSWORD=x1\n+PASSWORD=x2\n\\ No newline at end of file\n"
    + _HEAD.format("b/c d.py").replace("+++ b/b/c d.py", "+++ b/b/c d.py\t")
    + "@@ -1 +1 @@\n-1\n+2\n"
)


def test_a_diff_is_cut_into_its_files_and_back() -> None:
    found = list(sections(_DIFF))
    assert [section.name for section in found] == ["a.py", "b/c d.py"]
    assert "".join(section.text for section in found) == _DIFF


def test_what_git_reads_stays_and_what_looked_secret_goes() -> None:
    shown = next(sections(_DIFF)).redacted().body.split("\n")
    assert shown[0] == f'@@ -2,3 +2,3 @@ password = "{MARK}"'
    assert shown[2:4] == [f'-password: "{MARK}"', f'+password: "{MARK}"']
    assert shown[-3:] == [f"+PASSWORD={MARK}", "\\ No newline at end of file", ""]


def test_context_and_removed_lines_come_back_from_the_commit() -> None:
    content = 'zero\none\npassword: "hunter2"\ntwo\n5\n6\n7\n8\nPASSWORD=x1\n'
    first = next(sections(_DIFF))
    mended = mend(first.redacted(), lambda name: {"a.py": content}[name])
    was, now = first.body.split("\n"), mended.body.split("\n")
    assert [line for line in was if line[:1] in {" ", "-"}] == [line for line in now if line[:1] in {" ", "-"}]
    assert f'+password: "{MARK}"' in now
    assert mend(first.redacted(), lambda _: None) == first.redacted()


@given(st.lists(st.text(st.characters(blacklist_characters="\n", blacklist_categories=["Cs"])), min_size=1))
def test_redaction_keeps_the_shape_of_any_hunk(lines: list[str]) -> None:
    body = "@@ -0,0 +1 @@\n" + "\n".join("+" + line for line in lines)
    section = next(sections(_HEAD.format("x") + body))
    shown = section.redacted().body.split("\n")
    assert len(shown) == len(lines) + 1
    assert all(line.startswith("+") for line in shown[1:])


@pytest.mark.parametrize(
    ("header", "obstacle"),
    [
        ("diff --git a/w.bin b/w.bin\nindex 1..2 100644\nBinary files a/w.bin and b/w.bin differ\n", "binary"),
        ("diff --git a/s b/s\nindex 1..2 160000\n--- a/s\n+++ b/s\n", "submodule"),
        (_HEAD.format(".env.local"), "its name says that it holds secrets"),
        (_HEAD.format("gh" + "p_" + "a1" * 18), "its name holds what looks like a secret"),
        ("diff --git a/x b/x\nold mode 100644\nnew mode 100755\n", ""),
    ],
)
def test_some_sections_are_not_kept(header: str, obstacle: str) -> None:
    assert next(sections(header)).obstacle == obstacle


@pytest.mark.parametrize(
    ("target", "leaves"),
    [("package", False), ("../x", False), ("../../x", True), ("/etc/passwd", True), ("a/../../../x", True)],
)
def test_links_out_of_the_tree_are_seen(target: str, leaves: bool) -> None:
    header = "diff --git a/d/l b/d/l\nnew file mode 120000\nindex 0..1\n--- /dev/null\n+++ b/d/l\n"
    section = next(sections(f"{header}@@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"))
    assert bool(section.leaving_link) == leaves


def test_quoted_names_are_read() -> None:
    header = 'diff --git "a/q\\"\\t\\001.py" "b/q\\"\\t\\001.py"\n'
    assert next(sections(header)).name == 'q"\t\x01.py'
    assert next(sections(header + '--- "a/q\\".py"\n+++ "b/q\\".py"\n')).name == 'q".py'
    assert next(sections(header + '--- "a/q\\".py"\n+++ /dev/null\n')).name == 'q".py'


@pytest.mark.parametrize("name", [".env", ".env.local", "a/prod.env", "b.pem", "id_ed25519", "id_rsa.pub", ".ssh/x"])
def test_files_that_hold_secrets_are_known_by_name(name: str) -> None:
    assert is_secret_file(name)


@pytest.mark.parametrize("name", ["train.py", "secrets.py", "id_mapping.json", "environment.yml", "keys/model.py"])
def test_other_files_are_not(name: str) -> None:
    assert not is_secret_file(name)
