"""What bytes does TensorBoard read?

An event file is a sequence of TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data), each
holding one ``Event`` message. Messages and checksum come from the package ``tensorboard``, which needs neither
TensorFlow nor PyTorch for them; the C checksum of ``google-crc32c`` is taken where it is installed.

A number is written as ``simple_value``, one event per log record with a value per metric; images, histograms and sounds
likewise in the older of the two encodings. That is the one every reader shows: TensorBoard and its data server turn it
into the newer tensor form while they load, ``EventAccumulator.Scalars`` and the readers built on it know nothing else.

**Invariants**: bytes depend on the arguments alone: no clock, no random name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

from milepost.core.errors import MissingDependencyError
from milepost.core.events import Number
from milepost.trackers.media_files import Histogram, Picture, Sound

__all__ = ["EventEncoder"]

_STEP_LIMIT = 2**63 - 1


class EventEncoder:
    """Makes framed events.

    Raises:
        MissingDependencyError: The package ``tensorboard`` is absent.
    """

    def __init__(self) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, graph_pb2, histogram_pb2, summary_pb2
            from tensorboard.plugins.hparams import metadata, plugin_data_pb2, summary_v2
            from tensorboard.plugins.text.summary_v2 import text_pb
        except ImportError as error:
            raise MissingDependencyError(
                f"TensorBoard not available ({error})", cure="pip install tensorboard"
            ) from error
        self._messages = event_pb2
        self._summary = summary_pb2.Summary
        self._value = summary_pb2.Summary.Value
        self._histogram = histogram_pb2.HistogramProto
        self._graph = graph_pb2.GraphDef
        self._undecodable: type[Exception] = import_module("google.protobuf.message").DecodeError
        self._text_summary = text_pb
        self._hyperparameter_summary = summary_v2.hparams_pb
        self._hyperparameter_metadata = metadata
        self._hyperparameter_data = plugin_data_pb2
        self._checksum = _checksum()
        self._framed_length = lru_cache(maxsize=4096)(self._frame_length)

    def file_start(self, seconds: float) -> bytes:
        """The first event of a file."""
        return self._event(seconds, file_version="brain.Event:2")

    def scalars(self, seconds: float, step: int, values: Mapping[str, Number]) -> bytes:
        """Numbers of one step, rounded to float32; NaN and the infinities are kept, too large becomes infinite."""
        make = self._value
        summary = self._summary(value=[make(tag=name, simple_value=_float(value)) for name, value in values.items()])
        return self._event(seconds, step, summary=summary)

    def text(self, seconds: float, step: int, name: str, text: str, *, first: bool = True) -> bytes:
        """A text, which TensorBoard renders as Markdown; only the ``first`` of a name says that it is one."""
        summary = self._text_summary(_unicode(name), _unicode(text))
        if not first:
            summary.value[0].ClearField("metadata")
        return self._event(seconds, step, summary=summary)

    def picture(self, seconds: float, step: int, name: str, picture: Picture) -> bytes:
        """An image."""
        image = self._summary.Image(
            height=picture.height, width=picture.width, encoded_image_string=picture.png, colorspace=picture.channels
        )
        return self._event(seconds, step, summary=self._summary(value=[self._value(tag=_unicode(name), image=image)]))

    def histogram(self, seconds: float, step: int, name: str, counted: Histogram) -> bytes:
        """Counted values, without the empty bins at both ends.

        The format has right edges only. Its readers put the smallest value for the left edge of the first bin and the
        largest for the right edge of the last: where those two are empty, the data server draws them backwards.
        """
        filled = [place for place, count in enumerate(counted.counts) if count] or [0]
        kept = slice(filled[0], filled[-1] + 1)
        histo = self._histogram(
            min=counted.smallest,
            max=counted.largest,
            num=counted.number,
            sum=counted.total,
            sum_squares=counted.total_of_squares,
            bucket_limit=counted.edges[1:][kept],
            bucket=counted.counts[kept],
        )
        return self._event(seconds, step, summary=self._summary(value=[self._value(tag=_unicode(name), histo=histo)]))

    def sound(self, seconds: float, step: int, name: str, sound: Sound) -> bytes:
        """A sound."""
        audio = self._summary.Audio(
            sample_rate=sound.rate,
            num_channels=sound.channels,
            length_frames=sound.frames,
            encoded_audio_string=sound.wav,
            content_type="audio/wav",
        )
        return self._event(seconds, step, summary=self._summary(value=[self._value(tag=_unicode(name), audio=audio)]))

    def graph(self, seconds: float, definition: bytes) -> bytes:
        """The model, as a serialized ``GraphDef``; a run shows its newest.

        Raises:
            ValueError: It is no ``GraphDef``.
        """
        try:
            self._graph.FromString(definition)
        except self._undecodable as error:
            raise ValueError(f"it holds no graph ({error})") from None
        return self._event(seconds, graph_def=definition)

    def hyperparameters(self, seconds: float, group: str, values: Mapping[str, Any]) -> bytes:
        """The row of this run in the table of hyperparameters; ``group`` names the row."""
        flat = dict(_flat(values, ""))
        return self._event(seconds, summary=self._hyperparameter_summary(flat, group, seconds))

    def completed(self, seconds: float) -> bytes:
        """Marks that row as finished with success."""
        metadata, data = self._hyperparameter_metadata, self._hyperparameter_data
        ended = data.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=seconds)
        value = self._value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(data.HParamsPluginData(session_end_info=ended)),
            tensor=metadata.NULL_TENSOR,
        )
        return self._event(seconds, summary=self._summary(value=[value]))

    def session_start(self, seconds: float, step: int) -> bytes:
        """Everything before this in the run's files, at ``step`` and after, is superseded.

        TensorBoard without its data server ignores the first one that it meets in a run.
        """
        return self._event(seconds, step, session_log=self._messages.SessionLog(status="START"))

    def _event(self, seconds: float, step: int = 0, **what: Any) -> bytes:
        step = max(-_STEP_LIMIT, min(step, _STEP_LIMIT))
        data: bytes = self._messages.Event(wall_time=seconds, step=step, **what).SerializeToString()
        return b"%b%b%b" % (self._framed_length(len(data)), data, _MASKED.pack(_masked(self._checksum(data))))

    def _frame_length(self, length: int) -> bytes:
        word = struct.pack("<Q", length)
        return word + _MASKED.pack(_masked(self._checksum(word)))


_MASKED = struct.Struct("<I")


def _masked(crc: int) -> int:
    """TFRecord stores rotated checksums, so that a checksum of data that holds checksums stays strong."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _checksum() -> Callable[[bytes], int]:
    try:
        module, name = import_module("google_crc32c"), "value"
    except ImportError:
        module, name = import_module("tensorboard.compat.tensorflow_stub.pywrap_tensorflow"), "crc32c"
    return cast("Callable[[bytes], int]", getattr(module, name))


def _float(value: Number) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return float("inf") if value > 0 else float("-inf")


def _unicode(text: str) -> str:
    """``text`` without lone surrogates, which protobuf refuses."""
    return text.encode("utf-8", "replace").decode()


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, bool | float | str]]:
    for key, value in tree.items():
        name = _unicode(f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}/")
        elif isinstance(value, (bool, float)):
            yield name, value
        elif isinstance(value, int):
            yield name, _float(value)
        else:
            yield name, _unicode(str(value))
