"""What of an image, a sound or a table that a user gives is handed over, and is it one that can be meant?

Nothing is encoded or scaled here: raw numbers leave as they are, with what their encoder must know. Arrays of NumPy,
tensors of any device, images of Pillow and plain lists are taken. What comes out shares memory with the input wherever
that lies in one piece.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milepost.core.errors import InvalidCallError, InvalidInputError, MissingDependencyError
from milepost.runs.staged import Buffer

__all__ = ["Form", "audio_of", "figure_of", "histogram_of", "images_of", "raw"]

_CHANNELS = (1, 3, 4)
_MOST_SOUND_CHANNELS = 16
_MOST_BINS = 4096
Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One thing to hand over: its form, its raw bytes, and what its encoder must know."""

    form: str
    data: Iterable[Buffer]
    facts: dict[str, Any] = field(default_factory=dict)


def raw(form: str, array: Array, **facts: Any) -> Form:
    """An array as it lies in memory."""
    whole = np.ascontiguousarray(array)
    facts = {"dtype": whole.dtype.newbyteorder("<").str, "shape": list(array.shape)} | facts
    if whole.dtype.byteorder == ">":
        whole = whole.astype(facts["dtype"])
    return Form(form=form, data=[whole.reshape(-1).view(np.uint8).data], facts=facts)


def _array(value: Any, call: str) -> Array:
    """The numbers of an array, a tensor or a list of numbers."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach()
        if tensor.dtype.is_floating_point and tensor.dtype not in {torch.float32, torch.float64, torch.float16}:
            tensor = tensor.float()  # NumPy knows no bfloat16
        return np.asarray(tensor.cpu().resolve_conj().resolve_neg().numpy())
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InvalidCallError(f"{call} got a {type(value).__name__} ({error})", cure="give an array") from error
    if array.dtype.kind not in "buif":
        raise InvalidCallError(f"{call} got a {type(value).__name__} of {array.dtype}", cure="give an array of numbers")
    return array


# -------------------------------------------------------------------- images


def images_of(image: Any) -> list[Form]:
    """The image, or each of a list of them.

    Raises:
        MissingDependencyError: Pillow, which encodes them, is absent.
        InvalidCallError: It is no image: neither array, tensor nor Pillow image, or of another dtype.
        InvalidInputError: Its shape is that of no image.
    """
    need_pillow("log_image")
    if not isinstance(image, (list, tuple)):
        return [_image(image)]
    if not image:
        raise InvalidInputError("log_image got no image", cure="give at least one")
    return [_image(one, index=number, count=len(image)) for number, one in enumerate(image)]


def need_pillow(call: str) -> None:
    """Refuse at once what nobody could encode later."""
    if not _pillow_is_there():
        raise MissingDependencyError(f"{call} needs Pillow", cure='pip install "milepost[media]"')


@cache
def _pillow_is_there() -> bool:
    """Looked up once, never imported: encoding is not the training's work."""
    return importlib.util.find_spec("PIL") is not None


def _image(image: Any, **facts: Any) -> Form:
    if isinstance(image, list):
        raise InvalidCallError("log_image got a list in a list", cure="give arrays, tensors or Pillow images")
    pixels = _array(_without_palette(image), "log_image")
    if pixels.dtype != np.uint8 and pixels.dtype.kind not in "fb":
        raise InvalidCallError(
            f"log_image got pixels of {pixels.dtype}", cure="give uint8 (0 to 255) or floats (0 to 1)"
        )
    first = _has_channels_first(pixels.shape, is_tensor="torch" in type(image).__module__)
    height, width = pixels.shape[1:] if first else pixels.shape[:2]
    return raw("image", pixels, height=height, width=width, channels_first=first, **facts)


def _without_palette(image: Any) -> Any:
    """An image of Pillow in a mode that has pixels of 8 bits; anything else as it is."""
    module = sys.modules.get("PIL.Image")
    if module is None or not isinstance(image, module.Image):
        return image
    if image.mode in {"L", "RGB", "RGBA"}:
        return image
    return image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")


def _has_channels_first(shape: tuple[int, ...], *, is_tensor: bool) -> bool:
    """Whether a shape is channels x height x width; where both could be meant, as torch and NumPy users expect."""
    first = len(shape) == 3 and shape[0] in _CHANNELS
    last = len(shape) == 2 or (len(shape) == 3 and shape[2] in _CHANNELS)
    if not (first or last) or 0 in shape:
        cure = "give height x width, with 1, 3 or 4 channels in front or behind"
        if len(shape) == 4:
            cure += "; of a batch give list(images)"
        raise InvalidInputError(f"log_image got the shape {shape}", cure=cure)
    return first and (is_tensor or not last)


def figure_of(figure: Any) -> Form:
    """A figure of matplotlib, drawn here because it cannot leave its thread.

    Raises:
        InvalidCallError: It is none.
    """
    if not hasattr(figure, "savefig") or not hasattr(figure, "set_canvas"):
        raise InvalidCallError(
            f"log_figure got a {type(figure).__name__}", cure="give a figure of matplotlib or Plotly"
        )
    need_pillow("log_figure")
    pixels = _drawn(figure)
    return raw("figure", pixels, height=pixels.shape[0], width=pixels.shape[1], channels_first=False)


def _drawn(figure: Any) -> Array:
    """Height x width x RGBA; the figure keeps the canvas that its window, or its notebook, shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    try:
        canvas: Any = before if type(before) is FigureCanvasAgg else FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())
    finally:
        figure.set_canvas(before)


# -------------------------------------------------------------------- numbers


def histogram_of(values: Any, bins: int) -> Form:
    """Values to be counted.

    Raises:
        InvalidCallError: They are no numbers, or ``bins`` is no whole number.
        InvalidInputError: ``bins`` is out of range.
    """
    if not isinstance(bins, int) or isinstance(bins, bool):
        raise InvalidCallError(f"bins is {bins!r}", cure="give a whole number")
    if not 1 <= bins <= _MOST_BINS:
        raise InvalidInputError(f"bins is {bins}", cure=f"give 1 to {_MOST_BINS}")
    return raw("histogram", _array(values, "log_histogram"), bins=bins)


def audio_of(samples: Any, sample_rate: int) -> Form:
    """Samples of one channel, or of several in either order: the shorter side is that of the channels.

    Raises:
        InvalidCallError: They are neither floats nor int16, or ``sample_rate`` is no whole number.
        InvalidInputError: Shape or rate are those of no sound.
    """
    if not isinstance(sample_rate, (int, np.integer)) or isinstance(sample_rate, bool):
        raise InvalidCallError(f"sample_rate is {sample_rate!r}", cure="give samples per second, a whole number")
    if not 1 <= sample_rate < 1 << 31:
        raise InvalidInputError(f"sample_rate is {sample_rate}", cure="give samples per second")
    sound = _array(samples, "log_audio")
    if sound.dtype != np.int16 and sound.dtype.kind != "f":
        raise InvalidCallError(f"log_audio got samples of {sound.dtype}", cure="give floats (-1 to 1) or int16")
    channels = 1 if sound.ndim == 1 else min(sound.shape, default=0)
    if sound.ndim not in {1, 2} or not 1 <= channels <= _MOST_SOUND_CHANNELS or not sound.size:
        raise InvalidInputError(
            f"log_audio got the shape {sound.shape}",
            cure=f"give one dimension of samples, or two with up to {_MOST_SOUND_CHANNELS} channels",
        )
    first = sound.ndim == 2 and sound.shape[0] == channels
    length = sound.size // channels
    return raw(
        "audio",
        sound,
        sample_rate=int(sample_rate),
        channels=channels,
        channels_first=first,
        seconds=length / int(sample_rate),
    )
