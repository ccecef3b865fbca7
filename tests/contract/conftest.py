"""What every whole-life test gets: no script that it started outlives it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.training_script import Script


@pytest.fixture(autouse=True)
def _no_script_outlives_its_test() -> Iterator[None]:
    yield
    Script.end_all()
