"""How do raw pixels, samples and numbers become a file that any program opens?

PNG, WAV and JSON. The same raw data always gives the same bytes, so an attempt that was interrupted can be repeated.
"""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milepost.core.errors import CorruptDataError, MissingDependencyError
from milepost.runs.metadata import as_json
from milepost.runs.staged import Staged

__all__ = ["Encoded", "encode"]

Array = NDArray[Any]
#: Largest number that is told from its neighbours in a histogram: the span of two such is still a float.
_WIDEST = 8e307


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The content of a media file, its ending and type, and what a viewer wants to know before it opens it.

    ``remark`` is what a person should know of it: values that could not be shown as they are.
    """

    content: bytes
    ending: str
    media_type: str
    facts: dict[str, Any] = field(default_factory=dict)
    remark: str = ""


def encode(staged: Staged, data: memoryview) -> Encoded:
    """The file that ``staged`` becomes.

    Raises:
        CorruptDataError: Data and description do not fit each other, or the form is not known.
        MissingDependencyError: Pillow is absent.
    """
    encoder = _ENCODERS.get(staged.form)
    if encoder is None:
        raise CorruptDataError(f"nothing is known of the form {staged.form!r}", cure="log it again")
    try:
        return encoder(data, staged.facts)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error, wave.Error) as error:
        raise CorruptDataError(f"a staged {staged.form} cannot be read ({error})", cure="log it again") from error


def _array(data: memoryview, facts: Mapping[str, Any]) -> Array:
    return np.frombuffer(data, np.dtype(facts["dtype"])).reshape(facts["shape"])


# -------------------------------------------------------------------- images


def _image(data: memoryview, facts: Mapping[str, Any]) -> Encoded:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("images need Pillow", cure='pip install "milepost[media]"') from error
    pixels = _array(data, facts)
    if facts["channels_first"]:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    shown, remark = _of_8_bits(pixels)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(shown)).save(file, "PNG", compress_level=3)  # 6 takes thrice as long for 5 %
    kept = {name: facts[name] for name in ("width", "height", "index", "count") if name in facts}
    return Encoded(content=file.getvalue(), ending=".png", media_type="image/png", facts=kept, remark=remark)


def _of_8_bits(pixels: Array) -> tuple[NDArray[np.uint8], str]:
    if pixels.dtype == np.uint8:
        return pixels, ""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255), ""
    values = np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    lowest, highest = float(values.min()), float(values.max())
    remark = ""
    if lowest < -1e-3 or highest > 1 + 1e-3:
        remark = f"floats from {lowest:.4g} to {highest:.4g}, cut off to 0 and 1; give uint8 for 0 to 255"
    return (np.clip(values, 0.0, 1.0) * 255 + 0.5).astype(np.uint8), remark


def _figure(data: memoryview, facts: Mapping[str, Any]) -> Encoded:
    if facts.get("encoding") == "plotly":
        return Encoded(content=bytes(data), ending=".plotly.json", media_type="application/vnd.plotly.v1+json")
    return _image(data, facts)


# -------------------------------------------------------------------- numbers


def _histogram(data: memoryview, facts: Mapping[str, Any]) -> Encoded:
    values = _array(data, facts).reshape(-1).astype(np.float64)
    finite = values[np.isfinite(values)]
    counted = np.clip(finite, -_WIDEST, _WIDEST)
    counts, edges = np.histogram(counted, bins=facts["bins"], range=_range_of(counted, facts["bins"]))
    with np.errstate(over="ignore"):  # what is beyond every float is infinite here too
        total, squares = float(finite.sum()), float(np.square(finite).sum())
    content = {
        "bin_edges": edges.tolist(),
        "counts": counts.tolist(),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "sum": total,
        "sum_squares": squares,
        "count": int(finite.size),
        "nan": int(np.isnan(values).sum()),
        "positive_infinity": int((values == np.inf).sum()),
        "negative_infinity": int((values == -np.inf).sum()),
    }
    shown = {"bins": facts["bins"]} | {name: content[name] for name in ("count", "min", "max")}
    return Encoded(content=as_json(content), ending=".histogram.json", media_type="application/json", facts=shown)


def _range_of(values: Array, bins: int) -> tuple[float, float]:
    """From the smallest to the largest; wider where floats could not tell the edges of the bins apart."""
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = max(4 * bins * float(np.spacing(max(abs(low), abs(high)))), 1e-290)
    if low == high:
        room = max(room, 0.5)
    return (low, high) if high - low >= room else (low - room, high + room)


def _audio(data: memoryview, facts: Mapping[str, Any]) -> Encoded:
    samples = _array(data, facts)
    if facts["channels_first"]:
        samples = samples.T
    remark = ""
    if samples.dtype != np.int16:
        values = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
        loudest = float(np.abs(values).max())
        if loudest > 1 + 1e-3:
            remark = f"floats up to {loudest:.4g}, cut off to -1 and 1; give int16, or divide them"
        samples = np.round(np.clip(values, -1.0, 1.0) * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(facts["channels"])
        sound.setsampwidth(2)
        sound.setframerate(facts["sample_rate"])
        sound.writeframes(np.ascontiguousarray(samples, "<i2").tobytes())
    kept = {name: facts[name] for name in ("sample_rate", "channels", "seconds")}
    return Encoded(content=file.getvalue(), ending=".wav", media_type="audio/wav", facts=kept, remark=remark)


# -------------------------------------------------------------------- what is ready as it stands


def _ready(ending: str, media_type: str) -> Callable[[memoryview, Mapping[str, Any]], Encoded]:
    def encoded(data: memoryview, facts: Mapping[str, Any]) -> Encoded:
        return Encoded(content=bytes(data), ending=ending, media_type=media_type, facts=dict(facts))

    return encoded


_ENCODERS: dict[str, Callable[[memoryview, Mapping[str, Any]], Encoded]] = {
    "image": _image,
    "figure": _figure,
    "histogram": _histogram,
    "audio": _audio,
    "table": _ready(".table.json", "application/json"),
    "text": _ready(".txt", "text/plain"),
    "html": _ready(".html", "text/html"),
    "graph": _ready(".graph.pb", "application/x-tensorboard-graph"),
}
