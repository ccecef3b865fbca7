"""What the page of a run says of its guests."""

from __future__ import annotations

from milepost.core.events import StatusChanged
from milepost.trackers.cursor import Cursor, save_cursor
from tests.unit.cli.stage import Stage


def test_each_guest_shows_how_far_it_is_while_the_run_goes_on_and_when_it_is_over(stage: Stage) -> None:
    story = stage.run("bert_1").train(range(3), loss=float)
    save_cursor(story.layout.cursor("record"), Cursor(records=4))
    save_cursor(story.layout.cursor("tensorboard"), Cursor(records=4, closed=True))
    save_cursor(story.layout.cursor("wandb"), Cursor(records=1234))
    assert _guests(stage) == {"tensorboard": ("complete", 4), "wandb": ("following", 1234)}
    story.tell(StatusChanged(status="completed")).die()
    assert _guests(stage) == {"tensorboard": ("complete", 4), "wandb": ("behind", 1234)}
    printed = stage.ask("show", "bert_1").stdout
    assert [line.split()[:3] for line in printed.splitlines() if line.startswith("wandb")] == [
        ["wandb", "behind", "1,234"]
    ]


def _guests(stage: Stage) -> dict[str, tuple[str, int]]:
    return {guest["name"]: (guest["state"], guest["records"]) for guest in stage.ask_json("show", "bert_1")["guests"]}


def test_a_run_without_guests_says_nothing_of_them(stage: Stage) -> None:
    stage.run("bert_1").train(range(3), loss=float)
    assert stage.ask_json("show", "bert_1")["guests"] == []
    assert "GUESTS" not in stage.ask("show", "bert_1").stdout
