from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from milepost.checkpoint.rng import capture_generator, capture_rng, restore_generator, restore_rng
from milepost.core.errors import InvalidInputError


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.normal()),
        float(torch.randn(())),
        float(torch.rand(())),
    ]


def test_all_generators_go_on_with_the_numbers_that_would_have_come() -> None:
    draw()  # an odd number of Gaussians: the second of each pair is cached
    state = capture_rng()
    wanted = [draw() for _ in range(3)]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

    assert restore_rng(state) == ()
    assert [draw() for _ in range(3)] == wanted


def test_taking_a_state_draws_nothing() -> None:
    torch.manual_seed(1)
    first = draw()[3:]
    torch.manual_seed(1)
    capture_rng()

    assert draw()[3:] == first


def test_states_of_devices_that_are_not_here_are_said() -> None:
    state = capture_rng() | {"cuda": [b"\0" * 16, b"\0" * 16]}
    if torch.cuda.is_available():
        pytest.skip("this machine has such a device")

    assert restore_rng(state) == ("random numbers are not exact: saved for 2 CUDA devices, 0 are here",)


@pytest.mark.parametrize(
    "generator",
    [
        torch.Generator().manual_seed(1),
        np.random.default_rng(1),
        np.random.Generator(np.random.MT19937(1)),
        random.Random(1),
    ],
    ids=["torch", "PCG64", "MT19937", "python"],
)
def test_a_generator_of_the_user_comes_back(generator: object) -> None:
    def number() -> float:
        if isinstance(generator, torch.Generator):
            return float(torch.rand((), generator=generator))
        return float(generator.random())  # type: ignore[attr-defined]

    state = capture_generator(generator)
    wanted = number()
    number()
    restore_generator(generator, state)

    assert number() == wanted


def test_a_generator_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="holds a python generator, this one is a torch generator"):
        restore_generator(torch.Generator(), capture_generator(random.Random(1)))


def test_something_that_is_no_generator_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="type int"):
        capture_generator(3)
