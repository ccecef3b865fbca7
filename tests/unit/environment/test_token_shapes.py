from __future__ import annotations

import random
import string

import pytest

from milepost.environment.token_shapes import SHAPES, SHORTEST, is_disordered, looks_opaque


def test_random_text_is_disordered_and_names_are_not() -> None:
    source = random.Random(7)
    alphabet = string.ascii_letters + string.digits
    found = sum(is_disordered("".join(source.choices(alphabet, k=40))) for _ in range(1000))
    assert found > 950  # the rest have fewer than two digits
    for name in (
        "BertForSequenceClassification2WithHead3AndMore",
        "0123456789abcdef" * 4,
        "UPPER_AND_lower_words_2_x_9",
    ):
        assert not is_disordered(name)


@pytest.mark.parametrize(
    "value", ["<pad>", "[CLS]", "hello world and 12345", "averylongwordwithoutdigits", "12345678901234567"]
)
def test_words_and_numbers_are_not_opaque(value: str) -> None:
    assert not looks_opaque(value)


def test_no_shape_matches_anything_shorter_than_the_limit_that_callers_rely_on() -> None:
    for prefix in ("ghp_", "hf_", "sk-", "rk_", "AKIA", "xoxb-", "r8_", "dapi", "SG.a.", "eyJ"):
        short = (prefix + "A1b2C3d4E5f6G7h8I9j0")[: SHORTEST - 2]
        assert SHAPES.search(short) is None or len(short) >= SHORTEST
