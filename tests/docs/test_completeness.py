"""Does the documentation speak of everything there is, and of nothing else?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from milepost.cli.app import app
from milepost.core.config import ExperimentConfig
from tests.docs.code_blocks import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands_of(group: Any) -> Iterator[tuple[str, Any]]:
    """Every command with its words, and the groups of commands."""
    for name, inner in group.commands.items():
        yield name, inner
        if hasattr(inner, "commands"):
            yield from ((f"{name} {words}", command) for words, command in commands_of(inner))


def test_every_command_and_option_is_on_the_page_of_the_terminal() -> None:
    page = text_of("docs/terminal.md")
    for name, inner in commands_of(typer.main.get_command(app)):
        assert f"`milepost {name}" in page, name
        for option in (option for parameter in inner.params for option in parameter.opts if option.startswith("--")):
            assert option in page, f"{name} {option}"


def test_every_setting_is_explained() -> None:
    page = text_of("docs/getting-started.md")
    assert [field.name for field in fields(ExperimentConfig) if f"`{field.name}`" not in page] == []


@pytest.mark.parametrize("page", [page.relative_to(ROOT) for page in PAGES], ids=str)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target
