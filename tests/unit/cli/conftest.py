"""Real stores, written as a training and its companion write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path, [])
    for folder in ("experiments", "metrics", "checkpoints"):
        (tmp_path / folder).mkdir()
    yield made
    for story in made.stories:
        story.die()
