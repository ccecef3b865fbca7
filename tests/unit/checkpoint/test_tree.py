"""The typed tree gives back what it was given, and refuses the rest by its place."""

from __future__ import annotations

import argparse
import json
import types
from collections import OrderedDict, defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.checkpoint.tree import EnumMember, PlainFields, decode_tree, encode_tree
from milepost.checkpoint.tree_decoder import _DECODERS
from milepost.core.errors import CorruptDataError, InvalidInputError
from tests.unit.checkpoint.container_samples import run_python


def no_leaf(_: object) -> None:
    return None


def there_and_back(value: Any) -> Any:
    text = json.dumps(encode_tree(value, leaf=no_leaf), allow_nan=False)
    return decode_tree(json.loads(text), leaf=lambda index: index)


def same(first: Any, second: Any) -> bool:
    """Equality that also compares types and orders, and holds for NaN and for -0.0."""
    if type(first) is not type(second):
        return False
    if isinstance(first, (float, complex)):
        return repr(first) == repr(second)
    if isinstance(first, (list, tuple, deque)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return same(list(first), list(second)) and same(list(first.values()), list(second.values()))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if isinstance(first, (set, frozenset)):
        return bool(encode_tree(first, leaf=no_leaf) == encode_tree(second, leaf=no_leaf))  # sorted, unlike its repr
    return bool(first == second)


text = st.text(st.characters(codec=None))
timezones = st.none() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary() | st.complex_numbers() | st.dates(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2),
    max_leaves=3,
)
scalars = keys | st.datetimes(timezones=timezones) | st.timedeltas() | st.binary().map(bytearray)
arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize),
    st.just("<f4"),
    st.just((2, 3)),
    st.integers(0, 9),
).map(lambda data: np.frombuffer(data, "<f4").reshape(2, 3).copy())
values = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=5))
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.sets(keys, max_size=3)
    ),
    max_leaves=12,
)


@given(values)
@settings(max_examples=300, deadline=None)
def test_every_value_comes_back_with_its_type_and_its_order(value: Any) -> None:
    assert same(there_and_back(value), value)


@given(values)
@settings(max_examples=50, deadline=None)
def test_equal_values_give_equal_text(value: Any) -> None:
    assert json.dumps(encode_tree(there_and_back(value), leaf=no_leaf)) == json.dumps(encode_tree(value, leaf=no_leaf))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=2)
        | st.tuples(st.sampled_from(sorted(_DECODERS)), inner).map(lambda pair: dict([pair]))
    ),
    max_leaves=10,
)


@given(json_values)
@settings(max_examples=500, deadline=None)
def test_a_forged_tree_is_read_or_refused_and_nothing_else(node: Any) -> None:
    with suppress(CorruptDataError):
        decode_tree(node, leaf=lambda index: index)


def test_integer_and_text_keys_that_look_alike_stay_apart() -> None:
    assert there_and_back({0: "a", "0": "b", (0,): "c", None: "d"}) == {0: "a", "0": "b", (0,): "c", None: "d"}


def test_two_lone_surrogates_are_not_joined_to_one_character() -> None:
    assert there_and_back("\ud800\udc00") == "\ud800\udc00"
    assert there_and_back(Path("/data/\udc80")) == Path("/data/\udc80")


def test_the_state_of_numpys_generators_comes_back() -> None:
    generator = np.random.default_rng(1)
    state = there_and_back(generator.bit_generator.state)
    twin = np.random.default_rng(2)
    twin.bit_generator.state = state
    assert generator.random() == twin.random()
    legacy = there_and_back(np.random.RandomState(3).get_state())
    np.random.RandomState(4).set_state(legacy)


@pytest.mark.parametrize(
    "value",
    [
        np.float32("nan"),
        np.int64(-3),
        np.bool_(1),
        np.complex64(1j),
        np.datetime64("2026-11-24"),
        np.str_("x"),
        np.str_(""),
    ],
)
def test_numpy_scalars_keep_their_type(value: Any) -> None:
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert back.tobytes() == value.tobytes()


@pytest.mark.parametrize("dtype", [">f8", "<U5", "S3", "m8[s]", "?", "<f2"])
def test_small_arrays_of_any_plain_dtype_come_back(dtype: str) -> None:
    array = np.zeros((2, 0, 3), dtype)
    assert there_and_back(array).shape == (2, 0, 3)
    full = np.ones((2, 2), dtype) if not dtype.startswith("m") else np.array([1, 2], dtype)
    assert (there_and_back(full) == full).all()


class Colour(IntEnum):
    RED = 1


class Mode(Enum):
    FAST = "fast"


class Pair(NamedTuple):
    left: int
    right: list[int]


@dataclass
class Settings:
    rate: float
    layers: list[int]


def test_classes_of_the_user_come_back_as_names_and_fields() -> None:
    back = there_and_back({"e": Colour.RED, "m": Mode.FAST, "n": Pair(1, [2]), "d": Settings(0.1, [3])})
    assert back["e"] == EnumMember(f"{__name__}.Colour", "RED")
    assert back["n"] == {"left": 1, "right": [2]}
    assert back["d"].rate == 0.1
    assert back["d"].type_name == f"{__name__}.Settings"
    assert isinstance(back["d"], PlainFields)
    with pytest.raises(AttributeError, match="saved without a field 'gone'"):
        _ = back["d"].gone
    again = there_and_back(back)
    assert again == back
    assert again["d"].type_name == back["d"].type_name


def test_namespaces_and_state_dicts_keep_what_hangs_on_them() -> None:
    state: OrderedDict[str, int] = OrderedDict(weight=1)
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    back = there_and_back([state, argparse.Namespace(a=1), types.SimpleNamespace(b=[2])])
    assert back[0]._metadata == {"": {"version": 2}}
    assert back[1:] == [argparse.Namespace(a=1), types.SimpleNamespace(b=[2])]


class Widget:
    pass


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"optimizer": {"state": {0: {"foo": Widget()}}}}, r"optimizer\.state\[0\]\.foo: Widget"),
        ([1, (2, Widget())], r"\[1\]\[1\]: Widget"),
        ({"a b": Widget()}, r"\['a b'\]: Widget"),
        (argparse.Namespace(model=Widget()), "model: Widget"),
        (Settings(0.1, [Widget()]), r"layers\[0\]: Widget"),  # type: ignore[list-item]
        ({"x": defaultdict(list)}, "x: defaultdict"),
        ({"f": len}, "f: builtin_function_or_method"),
        ({Widget(): 1}, "a key of type Widget"),
        ({"x": np.array([Widget()])}, "x: a NumPy object value"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_its_place(value: Any, place: str) -> None:
    with pytest.raises(InvalidInputError, match=place) as caught:
        encode_tree(value, leaf=no_leaf)
    assert caught.value.kind == "unsupported-state"
    assert caught.value.cure


def test_a_cycle_is_refused_rather_than_followed() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(InvalidInputError, match="look for a cycle"):
        encode_tree(cycle, leaf=no_leaf)


def test_the_deepest_tree_that_can_be_written_can_be_read() -> None:
    value: Any = 1
    for depth in range(99):
        value = {"a": value} if depth % 2 else (value,)
    assert there_and_back(value) == value
    with pytest.raises(CorruptDataError, match="too deeply"):
        decode_tree(json.loads("[" * 250 + "]" * 250), leaf=no_leaf)


def test_leaves_are_asked_for_and_shared_ones_stay_one() -> None:
    widget = Widget()
    big = np.zeros(4)
    outside = [widget, big]
    node = encode_tree(
        {"a": widget, "b": [widget], "c": big}, leaf=lambda x: next(i for i, o in enumerate(outside) if o is x)
    )
    back = decode_tree(node, leaf=outside.__getitem__)
    assert back["a"] is widget
    assert back["b"][0] is widget
    assert back["c"] is big


def test_torch_values_come_back_as_torch_values() -> None:
    torch = pytest.importorskip("torch")
    value = [torch.float32, torch.bfloat16, torch.Size([2, 3]), torch.device("cuda", 1), {torch.int8: 1}]
    back = there_and_back(value)
    assert back == value
    assert type(back[2]) is torch.Size
    assert there_and_back(torch.__version__) == str(torch.__version__)
    with pytest.raises(InvalidInputError, match="w: Tensor"):
        encode_tree({"w": torch.zeros(1)}, leaf=no_leaf)


def test_the_tree_can_be_read_and_written_without_importing_torch() -> None:
    code = (
        "import sys; from milepost.checkpoint.tree import *;"
        "assert decode_tree(encode_tree({'a': (1, 2.5)}, leaf=lambda _: None), leaf=int) == {'a': (1, 2.5)};"
        "assert 'torch' not in sys.modules"
    )
    assert run_python(code).returncode == 0


@pytest.mark.parametrize(
    "node",
    [
        {"array": ["|O8", [1], "AAAAAAAAAAA="]},
        {"array": ["<f4", [1 << 40], ""]},
        {"array": ["<f4", [-1, -1], "AAAAAA=="]},
        {"unheard of": 1},
        {"int": "1", "float": "1"},
        {"leaf": True},
        {"torch.dtype": 3},
        {"dict": [[], 1]},
        1.5,
    ],
)
def test_a_malformed_node_is_refused(node: Any) -> None:
    with pytest.raises(CorruptDataError):
        decode_tree(node, leaf=lambda index: index)


def test_dates_are_not_taken_for_datetimes() -> None:
    moment = datetime(2026, 10, 25, 2, 30, fold=1)  # noqa: DTZ001 - what is told apart here has no zone
    back = there_and_back([moment, date(2026, 1, 2)])
    assert back == [moment, date(2026, 1, 2)]
    assert back[0].fold == 1


def test_every_tag_is_described_in_the_format() -> None:
    text = (Path(__file__).parents[3] / "docs" / "format.md").read_text()
    assert [tag for tag in _DECODERS if f"`{tag}`" not in text] == []
