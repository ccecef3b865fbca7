"""Files of format version 1 open to exactly what was saved, by milepost and by a reader made from the document."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from milepost.checkpoint.commit import verify
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.reading import open_checkpoint
from tests.golden.make import EXPECTED, contents, described, make
from tests.golden.second_reader import SecondReader

FOLDER = Path(__file__).parent / "v1"
WANTED: dict[str, dict[str, Any]] = json.loads((FOLDER / EXPECTED).read_text())


@pytest.mark.parametrize("name", WANTED)
def test_milepost_reads_what_was_saved(name: str) -> None:
    assert contents(FOLDER / name) == WANTED[name]
    verify(FOLDER / name)


@pytest.mark.parametrize("name", WANTED)
def test_the_document_is_enough_to_read_it(name: str) -> None:
    file = SecondReader(FOLDER / name)
    found = {n: described(row[1], file.tensor(n)) for n, row in file.tensors.items() if not n.startswith("side_files/")}
    side_files = {n: base64.b64encode(file.tensor(n).tobytes()).decode() for n in file.manifest["side_files"]}
    assert found == WANTED[name]["tensors"]
    assert side_files == {f"side_files/{n}": content for n, content in WANTED[name]["side_files"].items()}
    assert (file.manifest["run"], file.manifest["tree"]) == (WANTED[name]["run"], WANTED[name]["tree"])


def test_the_files_cover_the_format() -> None:
    encodings, dtypes = set(), set()
    for name in WANTED:
        with open_checkpoint(FOLDER / name) as file:
            encodings |= {block.encoded.encoding for region in file.manifest.regions for block in region.blocks}
            dtypes |= {tensor.dtype for tensor in file.tensors.values()}
    assert dtypes == set(DTYPES)
    kinds = {encoding if encoding in {"raw", "="} else encoding[0] for encoding in encodings}
    assert kinds >= {"raw", "=", "d", "s"}
    assert any("z" in encoding and "w" in encoding for encoding in encodings)


def test_what_is_written_today_is_what_was_written(tmp_path: Path) -> None:
    """The files may differ in bytes with the libraries' versions; what they hold may not."""
    make(tmp_path)
    assert json.loads((tmp_path / EXPECTED).read_text()) == WANTED
