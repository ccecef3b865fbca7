"""What is in a file that a run logged, as far as a guest can show it?

A file is checked before it goes to a guest: its length is the one in the log, and its content is what its form
promises. A guest can then leave out a damaged one and go on, instead of handing it to a library that raises, or to a
page that stays white.
"""

from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from milepost.core.errors import CorruptDataError, NotFoundError
from milepost.core.events import MediaAdded

__all__ = [
    "Attachment",
    "Graph",
    "Histogram",
    "Media",
    "Page",
    "Picture",
    "Plot",
    "Sound",
    "Table",
    "Words",
    "read_media",
]

#: PNG (RFC 2083): signature, then the chunk IHDR with width and height; the chunk IEND is the last one.
_PNG = b"\x89PNG\r\n\x1a\n"
_IHDR = struct.Struct(">8sI4sIIBB")
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by the PNG's colour type; a palette is RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG image: an image or a figure. ``width`` and ``height`` in pixels; 1 to 4 ``channels``."""

    path: Path
    png: bytes
    width: int
    height: int
    channels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """A WAV file; ``rate`` in frames per second."""

    path: Path
    wav: bytes
    rate: int
    channels: int
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counted values: ``counts[i]`` of them lie between ``edges[i]`` and ``edges[i + 1]``."""

    edges: Sequence[float]
    counts: Sequence[float]
    smallest: float
    largest: float
    total: float
    total_of_squares: float
    number: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of plain values, each as long as ``columns``."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An HTML page."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A figure of Plotly, as its JSON."""

    path: Path
    figure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A model as TensorBoard's serialized ``GraphDef``."""

    definition: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file of any other kind."""

    path: Path


Media = Picture | Sound | Histogram | Table | Page | Plot | Words | Graph | Attachment


def read_media(event: MediaAdded, folder: Path) -> Media:
    """What was logged.

    Args:
        event: The record of the file.
        folder: What its path is relative to.

    Raises:
        NotFoundError: The file is gone.
        CorruptDataError: It is not what was logged.
    """
    path = _path(event, folder)
    try:
        return _decoded(event, path)
    except FileNotFoundError:
        raise NotFoundError(f"the logged file {path} is gone", cure="restore it, if it is still wanted") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error, wave.Error, EOFError) as error:
        raise CorruptDataError(f"the logged file {path} is damaged ({error})", cure="restore it from a copy") from error


def _path(event: MediaAdded, folder: Path) -> Path:
    relative = PurePosixPath(event.path)
    if relative.is_absolute() or ".." in relative.parts or "\0" in event.path:
        raise CorruptDataError(f"a logged file is called {event.path!r}", cure="it lies outside of the run's media")
    return folder / relative


def _decoded(event: MediaAdded, path: Path) -> Media:
    size = path.stat().st_size
    if size != event.size:
        raise ValueError(f"it has {size} bytes instead of {event.size}")
    content: Media
    match event.form, event.media_type:
        case "image" | "figure", "image/png":
            content = _picture(path)
        case "audio", _:
            content = _sound(path)
        case "histogram", _:
            content = _histogram(json.loads(path.read_bytes()))
        case "table", _:
            content = _table(json.loads(path.read_bytes()))
        case "figure", "application/vnd.plotly.v1+json":
            content = Plot(path=path, figure=path.read_text("utf-8"))
        case "html", _:
            content = Page(path=path)
        case ("text", _) | (_, "text/plain"):
            content = Words(text=path.read_text("utf-8", errors="replace"))
        case "graph", _:
            content = Graph(definition=path.read_bytes())
        case _:
            content = Attachment(path=path)
    return content


def _picture(path: Path) -> Picture:
    png = path.read_bytes()
    signature, _, kind, width, height, _, colour = _IHDR.unpack_from(png)
    if signature != _PNG or kind != b"IHDR" or not png.endswith(_IEND):
        raise ValueError("it is no whole PNG image")
    return Picture(path=path, png=png, width=width, height=height, channels=_CHANNELS[colour])


def _sound(path: Path) -> Sound:
    wav = path.read_bytes()
    with wave.open(io.BytesIO(wav)) as file:
        return Sound(
            path=path, wav=wav, rate=file.getframerate(), channels=file.getnchannels(), frames=file.getnframes()
        )


def _histogram(content: Mapping[str, Any]) -> Histogram:
    edges, counts = ([float(number) for number in content[name]] for name in ("bin_edges", "counts"))
    if len(edges) != len(counts) + 1 and (edges or counts):
        raise ValueError(f"{len(counts)} bins have {len(edges)} edges")
    return Histogram(
        edges=edges,
        counts=counts,
        smallest=_number(content["min"]),
        largest=_number(content["max"]),
        total=_number(content["sum"]),
        total_of_squares=_number(content["sum_squares"]),
        number=_number(content["count"]),
    )


def _number(value: float | str | None) -> float:
    """Of no values there is no smallest; and what is not finite is a text in JSON (``"Infinity"``)."""
    return 0.0 if value is None else float(value)


def _table(content: Mapping[str, Any]) -> Table:
    columns, rows = [str(name) for name in content["columns"]], list(content["rows"])
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise ValueError(f"its rows do not all have {len(columns)} values")
    return Table(columns=columns, rows=rows)
