"""Whatever is changed in a file, and sealed again, is read or refused with milepost's own error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torture.fuzz import read_whatever_it_is, resealed

from tests.unit.checkpoint import forged_files as forged

GOLDEN = Path(__file__).parents[2] / "golden" / "v1"
SEEDS = {
    name: (GOLDEN / f"{name}.milepost").read_bytes() for name in ("small", "shared", "dtypes", "side_file", "empty")
}

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 70), 1 << 70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(
            ["", "raw", "=", "dww", "sww", "zzzz", "wzz", "float32", "leaf", "0" * 16, "0" * 32, "\0", "../x"]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["leaf", "int", "x"]), inner)),
    max_leaves=4,
)


def places_in(node: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with every key in it."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found.append((node, key))
        places_in(value, found)
    return found


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutations") / "checkpoint_1.milepost"


@given(st.sampled_from(sorted(SEEDS)), st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=9)), max_size=4))
@settings(max_examples=200, deadline=None)
def test_changed_bytes(target: Path, seed: str, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(SEEDS[seed])
    for place, piece in changes:
        start = place % len(content)
        content[start : start + len(piece)] = piece
    target.write_bytes(resealed(bytes(content)))
    read_whatever_it_is(target)


@given(st.sampled_from(sorted(SEEDS)), st.lists(st.tuples(st.integers(0, 1 << 30), VALUES), min_size=1, max_size=3))
@settings(max_examples=400, deadline=None)
def test_changed_values_of_the_manifest(target: Path, seed: str, changes: list[tuple[int, Any]]) -> None:
    target.write_bytes(SEEDS[seed])
    content, blocks = forged.parts(target)
    for place, value in changes:
        places = places_in(content, [])
        container, key = places[place % len(places)]
        container[key] = value
    forged.write(target, json.dumps(content).encode(), blocks)
    read_whatever_it_is(target)


def test_a_file_that_was_not_changed_is_read(target: Path) -> None:
    for content in SEEDS.values():
        assert resealed(content) == content
        target.write_bytes(content)
        assert read_whatever_it_is(target)
