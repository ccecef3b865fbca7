"""A small repository, as a user has one, for the tests of this room."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    """Run git as the user would, with none of milepost's precautions."""
    identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
    answer = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def repository(root: Path) -> Path:
    """One commit with a package, a script that may be executed, a link, and an ignored folder."""
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "package").mkdir()
    (root / "package" / "model.py").write_text("".join(f"line {number}\n" for number in range(30)))
    (root / "train.py").write_text("print('train')\n")
    (root / "train.py").chmod(0o755)
    (root / "latest").symlink_to("package")
    (root / ".gitignore").write_text("data/\n")
    (root / "data").mkdir()
    (root / "data" / "big.bin").write_bytes(b"\0" * 100)
    (root / "weights.bin").write_bytes(bytes(range(256)))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, except git's and the ignored ones, with its permissions and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.split("/")[0] in {".git", "data"}:
            continue
        if path.is_symlink():
            found[name] = (0, str(path.readlink()).encode())
        elif path.is_file():
            found[name] = (path.stat().st_mode & 0o111, path.read_bytes())
    return found
