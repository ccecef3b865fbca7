"""What can a run log beside numbers?

The verbs stand here once and are called through several doors: :class:`milepost.Run`, ``ExperimentTrackingSystem``, the
run in a forked child, and the one that does nothing.

A call copies the raw bytes once, to the system's memory of files, and returns; encoding is the companion's work. A call
that cannot be meant raises; a disk that is full is said once, and the training goes on.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import Text
from milepost.environment.secrets import redact
from milepost.run.media import MediaDesk, keep_file
from milepost.run.media_forms import Form, audio_of, figure_of, histogram_of, images_of
from milepost.run.media_tables import html_of, plotly_of, table_of

__all__ = ["LogsMedia"]

_LONGEST_TEXT = 48 * 1024
_FLUSH_PATIENCE = 30.0


class LogsMedia(ABC):
    """Logs texts, files, images, tables and other things to look at.

    Every ``step`` may be left out: the one last logged.
    """

    @property
    @abstractmethod
    def media_desk(self) -> MediaDesk | None:
        """Where things to look at are handed over; None where nothing is recorded (any more)."""

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Log a text under a name; a long one becomes a file below ``media``."""
        if not isinstance(text, str):
            raise InvalidCallError(f"log_text got {type(text).__name__}", cure="give a string")
        desk = self.media_desk
        if desk is None:
            return
        at = desk.step(step)
        content = redact(text)
        if len(content.encode(errors="replace")) <= _LONGEST_TEXT:
            desk.append(Text(step=at, name=name, text=content), step=at)
        else:
            desk.hand_over(name, [Form(form="text", data=[content.encode(errors="replace")])], at)

    def log_file(self, name: str, path: str | os.PathLike[str], step: int | None = None) -> None:
        """Keep a copy of a file below ``media``; it is copied before this returns.

        Raises:
            InvalidInputError: There is no such file.
        """
        if not Path(path).is_file():
            raise InvalidInputError(f"no file {os.fspath(path)!r}", cure="give the path of a file to log_file")
        desk = self.media_desk
        if desk is not None:
            desk.keep(partial(keep_file, desk.folder, name, path, desk.step(step)))

    def log_image(self, name: str, image: Any, step: int | None = None, *, caption: str = "") -> None:
        """Log an image, or a list of them; each becomes a PNG.

        Args:
            name: Groups the images of all steps.
            image: Height x width, with 1, 3 or 4 channels behind or in front (where both could be meant, a tensor has
                them in front, an array behind): uint8, bool, or floats from 0 to 1; what lies outside is cut off, NaN
                is black. An array, a tensor of any device (one that still computes is waited for), an image of Pillow.
            step: At which step.
            caption: Stands below it.

        Raises:
            MissingDependencyError: Pillow is absent.
            InvalidCallError: It is no image, or its pixels are neither uint8, bool nor floats.
            InvalidInputError: The shape is that of no image.
        """
        desk = self.media_desk
        if desk is not None:
            desk.hand_over(name, images_of(image), step, caption)

    def log_histogram(self, name: str, values: Any, step: int | None = None, *, bins: int = 64) -> None:
        """Log how values are distributed: counts in ``bins`` of equal width from the smallest to the largest.

        Args:
            name: Groups the histograms of all steps.
            values: Numbers of any shape: an array, a tensor, a list. NaN and infinities are counted apart.
            step: At which step.
            bins: 1 to 4096.

        Raises:
            InvalidCallError: The values are no numbers.
            InvalidInputError: ``bins`` is out of range.
        """
        desk = self.media_desk
        if desk is not None:
            desk.hand_over(name, [histogram_of(values, bins)], step)

    def log_table(self, name: str, columns: Any, rows: Any = None, step: int | None = None) -> None:
        """Log a table; it becomes JSON.

        The cells are turned to text by this call: some microseconds for each.

        Args:
            name: Groups the tables of all steps.
            columns: Names, with ``rows``; or, without, a mapping of names to columns, or a frame of pandas.
            rows: A list of cells for each row.
            step: At which step.

        Raises:
            InvalidCallError: It is no table.
            InvalidInputError: A row does not have as many cells as there are columns.
        """
        desk = self.media_desk
        if desk is not None:
            desk.hand_over(name, [table_of(columns, rows)], step)

    def log_figure(self, name: str, figure: Any, step: int | None = None) -> None:
        """Log a figure of matplotlib (as a PNG) or of Plotly (as its JSON).

        One of matplotlib is drawn by this call, tens of milliseconds at the usual size, and encoded elsewhere.

        Raises:
            MissingDependencyError: Pillow is absent.
            InvalidCallError: It is no such figure.
        """
        desk = self.media_desk
        if desk is None:
            return
        if hasattr(figure, "to_plotly_json"):
            desk.hand_over(name, [plotly_of(figure)], step)
        else:
            desk.hand_over(name, [figure_of(figure)], step)

    def log_audio(
        self, name: str, samples: Any, sample_rate: int, step: int | None = None, *, caption: str = ""
    ) -> None:
        """Log a sound; it becomes a WAV of 16 bits.

        Args:
            name: Groups the sounds of all steps.
            samples: One dimension, or two of which the shorter is that of the channels (16 at most): floats from -1 to
                1 (what lies outside is cut off) or int16.
            sample_rate: Samples per second.
            step: At which step.
            caption: Stands below it.

        Raises:
            InvalidCallError: The samples are neither floats nor int16.
            InvalidInputError: Shape or rate are those of no sound.
        """
        desk = self.media_desk
        if desk is not None:
            desk.hand_over(name, [audio_of(samples, sample_rate)], step, caption)

    def log_html(self, name: str, html: str, step: int | None = None) -> None:
        """Log a page, or a piece of one, as it is; whoever shows it must shut it in."""
        desk = self.media_desk
        if desk is not None:
            desk.hand_over(name, [html_of(html)], step)

    def log_model_graph(self, model: Any, example_input: Any) -> None:
        """Log the graph of a model, for TensorBoard's page of graphs.

        The model is run on the example in this call, in evaluation mode and without gradients. Random numbers, buffers
        and modes are afterwards as they were.

        Args:
            model: A ``torch.nn.Module``, bare or wrapped.
            example_input: A tensor, or a tuple of what the model is called with.

        Raises:
            MissingDependencyError: ``tensorboard`` is absent.
            InvalidInputError: The model cannot be traced; the message says why.
        """
        desk = self.media_desk
        if desk is not None:
            from milepost.checkpoint.model_graph import graph_of

            desk.hand_over("model", [Form(form="graph", data=[graph_of(model, example_input)])], None)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that this process logged so far is on disk, media encoded.

        A second is usual. Never raises for a disk that refuses: that was said when it did.

        Args:
            timeout: Seconds to wait at most; None: 30.

        Returns:
            Whether all of it is.
        """
        seconds = _FLUSH_PATIENCE if timeout is None else timeout
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
            raise InvalidInputError(f"timeout is {timeout!r}", cure="give seconds, or None")
        desk = self.media_desk
        return desk is None or desk.flush(seconds)
