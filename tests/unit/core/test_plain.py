"""Whatever a user calls a setting is kept, the same in every process that is given the same."""

from __future__ import annotations

import datetime as dt
import enum
import json
import math
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core.plain import plain


class Colour(enum.Enum):
    RED = 1


@dataclass
class Inner:
    lock: object = field(default_factory=threading.Lock)
    rate: float = 0.5


class Silent:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Colour.RED, "RED"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array(2), 2),
        (Path("/a"), "/a"),
        (dt.date(2026, 11, 24), "2026-11-24"),
        (2**64, str(2**64)),
        ((1, [2, {"a": None}]), [1, [2, {"a": None}]]),
        ({1: True, None: "x"}, {"1": True, "None": "x"}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ({"c", "a", "b"}, ["a", "b", "c"]),
        (frozenset({2, 10, "x"}), ["x", 10, 2]),
        (len, "<built-in function len>"),
        (Silent(), "Silent"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_kept_as_what_json_has_for_it(value, kept):
    assert plain(value) == kept


def test_a_dataclass_with_a_field_that_cannot_be_copied_is_kept():
    assert plain(Inner())["rate"] == 0.5


def test_what_contains_itself_ends_somewhere():
    loop: list[object] = []
    loop.append(loop)
    json.dumps(plain(loop))


def test_the_same_settings_are_the_same_in_every_process():
    code = "import json, sys; from milepost.core.plain import plain\nclass A: pass\n"
    code += "print(json.dumps(plain({'s': set('abcdefgh'), 'f': lambda: 0, 'o': A(), 'b': {(1, 2), (3,)}})))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True, check=True, text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(runs) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
    )
)
def test_anything_becomes_standard_json(value):
    json.dumps(plain(value), allow_nan=False)


def test_numbers_that_json_lacks_become_their_text():
    assert plain([math.nan, math.inf, -math.inf]) == ["nan", "inf", "-inf"]
