"""What does W&B show of a file that a run logged?

Images and figures, sounds, histograms, tables and HTML pages as its own kinds; a text as a page; any other file among
the files of the run. Images that were logged as one list are one value of one row.
"""

from __future__ import annotations

import glob
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any

from milepost.core.errors import MilepostError, MissingDependencyError
from milepost.core.events import MediaAdded
from milepost.trackers.media_files import (
    Attachment,
    Graph,
    Histogram,
    Media,
    Page,
    Picture,
    Plot,
    Sound,
    Table,
    Words,
    read_media,
)
from milepost.trackers.protocol import RunDescription

__all__ = ["Galleries", "MediaValues", "as_page"]

#: More bins make ``wandb.Histogram`` raise.
_MOST_BINS = 512


class Galleries:
    """Puts the images of one list together, which come as a record each.

    Args:
        known: The :meth:`open_one` after the last record that was told.
    """

    def __init__(self, known: Iterable[Mapping[str, Any]]) -> None:
        self._open = [MediaAdded(**fields) for fields in known]

    def open_one(self) -> list[dict[str, Any]]:
        """The list that is not complete yet, fit for JSON."""
        return [asdict(added) for added in self._open]

    def taken(self, added: MediaAdded) -> list[list[MediaAdded]]:
        """What can be shown now: what is no part of a list; a list once its last, or one of another list, came."""
        count = added.facts.get("count", 1)
        if "index" not in added.facts or count == 1:
            return [[added]]
        ready = [] if self._open and _list_of(added) == _list_of(self._open[0]) else self.rest()
        self._open.append(added)
        return [*ready, *self.rest()] if added.facts["index"] + 1 >= count else ready

    def rest(self) -> list[list[MediaAdded]]:
        """The list that is not complete, which is given up waiting for."""
        left, self._open = self._open, []
        return [left] if left else []


def _list_of(added: MediaAdded) -> tuple[str, int | None]:
    return added.name, added.step


class MediaValues:
    """Makes W&B's values of logged files.

    Args:
        wandb: The package.
        run: W&B's run.
        described: Ours.
        left_out: Told of each file that cannot be shown.
    """

    def __init__(self, wandb: Any, run: Any, described: RunDescription, left_out: Callable[[str, str], None]) -> None:
        self._wandb = wandb
        self._run = run
        self._described = described
        self._left_out = left_out

    def value(self, group: Sequence[MediaAdded]) -> Any:
        """What stands in the row for one file or one list of images; None if W&B's rows have nothing for it."""
        values = [value for added in group if (value := self._one(added)) is not None]
        if not values:
            return None
        return values if "index" in group[0].facts else values[0]

    def _one(self, added: MediaAdded) -> Any:
        try:
            return self._made(read_media(added, self._described.media), added.caption or None)
        except MilepostError as error:
            self._left_out(error.what, error.cure)
        except (self._wandb.Error, OSError, ValueError, TypeError) as error:
            self._left_out(f"W&B cannot show {added.path} ({error})", "the file stays in the run's media")
        return None

    def _made(self, media: Media, caption: str | None) -> Any:
        wandb, made = self._wandb, None
        match media:
            case Picture(path=path):
                made = wandb.Image(str(path), caption=caption)
            case Sound(path=path):
                made = wandb.Audio(str(path), caption=caption)
            case Histogram():
                made = wandb.Histogram(np_histogram=_bins(media)) if media.counts else None
            case Table(columns=columns, rows=rows):
                made = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
            case Plot(figure=figure):
                made = wandb.Plotly(_plotly(figure))
            case Page(path=path):
                made = wandb.Html(str(path), inject=False)
            case Words(text=text):
                made = as_page(wandb, text)
            case Attachment(path=path):
                self._run.save(glob.escape(str(path)), base_path=str(self._described.media), policy="now")
            case Graph():
                pass  # W&B makes its graphs out of the live model only
        return made


def as_page(wandb: Any, text: str) -> Any:
    """A text that keeps its line breaks."""
    return wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False, data_is_not_path=True)


def _plotly(figure: str) -> Any:
    """The figure as an object of Plotly's, of which W&B takes nothing less."""
    try:
        from_json = import_module("plotly.io").from_json
    except ImportError as error:
        raise MissingDependencyError(
            "W&B shows figures of Plotly by that package only", cure="pip install plotly"
        ) from error
    return from_json(figure, skip_invalid=True)


def _bins(counted: Histogram) -> tuple[list[float], list[float]]:
    """Counts and edges, neighbours put together where there are more than W&B takes."""
    width = -(-len(counted.counts) // _MOST_BINS)
    starts = range(0, len(counted.counts), width)
    counts = [sum(counted.counts[start : start + width]) for start in starts]
    return counts, [*(counted.edges[start] for start in starts), counted.edges[-1]]
