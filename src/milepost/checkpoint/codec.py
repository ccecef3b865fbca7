"""How does a block of numbers become fewer bytes, without loss and at the speed of a disk?

The bytes of a number differ in kind: of a float32 the top byte (sign, exponent) takes few values, the lowest ones are
noise. So a block is split into planes, one for each byte of the number, and each plane is stored raw or as one zstd
frame. Two neighbouring raw planes stay together as one lane of 16-bit words, which is half the work.

Where the file has a base, a block may hold what is left after the base's numbers were taken away
(:mod:`milepost.checkpoint.subtraction`), or nothing at all if it is the same.

Which of three ways a plane takes is decided once for each tensor by trying both compressors on a sample:

- ``R``: raw, because it is noise;
- ``H``: zstd so tuned that in effect only its Huffman stage works, at twice the speed, where some bytes are frequent;
- ``L``: zstd level 1, where sequences repeat.

Everything heavy here (strided copies, zstd) releases the GIL. A ``BlockCodec`` belongs to one thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from milepost.checkpoint.planes import PlaneCutter
from milepost.checkpoint.subtraction import SCALED_WIDTH, equal, is_scalable, subtract_folded, subtract_scaled

__all__ = [
    "BLOCK_BYTES",
    "DIFFERENCES",
    "LANE_ALIGNMENT",
    "RAW",
    "SAME",
    "BlockCodec",
    "DamagedBlockError",
    "EncodedBlock",
    "lane_letters",
    "lane_sizes",
    "padded",
]

Bytes = npt.NDArray[np.uint8]

#: Decoded bytes of a block; the last one of a region may be shorter.
BLOCK_BYTES = 2 << 20

#: Each lane starts at a multiple of this, counted from the start of its block, so that it can be read as wide words.
LANE_ALIGNMENT = 64

#: The encoding of a block that holds its numbers as they are.
RAW = "raw"

#: The encoding of a block whose bytes are those of the base: nothing is stored.
SAME = "="

#: First letters of encodings that need the base: same bytes, zig-zag difference, difference to the scaled base.
DIFFERENCES = (SAME, "d", "s")

_WORTH_COMPRESSING = 0.98
_WORTH_MATCHING = 0.97

#: How many bytes of a number a lane holds, by its letter.
_SPAN = {"w": 2, "r": 1, "z": 1}

_HUFFMAN = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=17,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
    write_content_size=True,
)


class DamagedBlockError(ValueError):
    """A stored block cannot be decoded; the reader adds which one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBlock:
    """What a block became.

    Attributes:
        encoding: :data:`RAW`, :data:`SAME`, or one letter for each lane from the lowest byte up: ``w`` two raw bytes,
            ``r`` one raw byte, ``z`` one byte as a zstd frame; behind ``d`` or ``s`` they are those of a difference.
        lanes: Stored bytes of each lane; the next one starts at the next multiple of :data:`LANE_ALIGNMENT`.
    """

    encoding: str
    lanes: tuple[int, ...]

    @property
    def stored(self) -> int:
        """Bytes from the first lane's first to the last lane's last."""
        if not self.lanes:
            return 0
        *before, last = self.lanes
        return sum(padded(length, LANE_ALIGNMENT) for length in before) + last


def padded(length: int, alignment: int) -> int:
    """``length`` rounded up to a multiple of ``alignment``."""
    return -(-length // alignment) * alignment


def lane_sizes(encoding: str, width: int, nbytes: int) -> list[int] | None:
    """Decoded bytes of each lane of a block of ``nbytes``, or None if ``encoding`` does not describe such a block."""
    if encoding == RAW:
        return [nbytes]
    if encoding == SAME:
        return []
    if nbytes % width or (encoding[:1] == "s" and width != SCALED_WIDTH):
        return None
    sizes: list[int] = []
    byte = 0
    for letter in lane_letters(encoding):
        span = _SPAN.get(letter, width + 1)
        if byte % span:
            return None
        sizes.append(span * (nbytes // width))
        byte += span
    return sizes if byte == width else None


def lane_letters(encoding: str) -> str:
    """The letters of an encoding's lanes, without the one that says what they are differences to."""
    return encoding[1:] if encoding == SAME or encoding[:1] in {"d", "s"} else encoding


class BlockCodec:
    """Encodes and decodes blocks with the compressors and buffers of one thread."""

    def __init__(self) -> None:
        self._compressors = {
            "H": zstandard.ZstdCompressor(compression_params=_HUFFMAN),
            "L": zstandard.ZstdCompressor(level=1),
        }
        # the window bounds what a forged frame can make the decoder allocate
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=BLOCK_BYTES)
        self._cutter = PlaneCutter()
        self._plane = np.empty(BLOCK_BYTES, np.uint8)
        self._left = np.empty(BLOCK_BYTES, np.uint8)

    def plan(self, sample: Bytes, width: int) -> tuple[str, int]:
        """The way of each plane, one letter for each byte of a number from the lowest up, and the bytes that it takes.

        Args:
            sample: Some numbers of a tensor, or differences, shape ``(n * width,)``.
            width: Bytes of a number.
        """
        choices = [self._choose(np.ascontiguousarray(sample[byte::width])) for byte in range(width)]
        return "".join(way for way, _ in choices), sum(length for _, length in choices)

    def _choose(self, plane: Bytes) -> tuple[str, int]:
        huffman, matching = (len(self._compressors[way].compress(plane.data)) for way in "HL")
        if min(huffman, matching) >= _WORTH_COMPRESSING * len(plane):
            return "R", len(plane)
        return ("L", matching) if matching < _WORTH_MATCHING * huffman else ("H", huffman)

    def encode(
        self, data: Bytes, width: int, plan: str, out: Bytes, *, base: Bytes | None = None, scale: int = 0
    ) -> EncodedBlock:
        """Encode ``data`` into the start of ``out``, which has room for it and its padding.

        Args:
            data: Shape ``(n * width,)``, at most :data:`BLOCK_BYTES`.
            width: Bytes of a number.
            plan: :data:`RAW`, or a letter for each plane, behind ``d`` or ``s`` if they are planes of a difference.
            out: Receives the stored bytes.
            base: The same block of the base, if there is one.
            scale: What ``s`` multiplies the base by, as the 32 bits of a float32.
        """
        if base is not None and equal(data, base):
            return EncodedBlock(encoding=SAME, lanes=())
        if _is_raw(plan, width, base):
            np.copyto(out[: len(data)], data)
            return EncodedBlock(encoding=RAW, lanes=(len(data),))
        relation, ways = plan[:-width], plan[-width:]
        if base is not None and relation:
            data = self._subtract(data, base, width, relation, scale)
        lanes = self._store_planes(data, width, ways, out)
        letters = "".join(letter for letter, _ in lanes)
        return EncodedBlock(encoding=relation + letters, lanes=tuple(length for _, length in lanes))

    def _subtract(self, data: Bytes, base: Bytes, width: int, relation: str, scale: int) -> Bytes:
        left = self._left[: len(data)]
        if relation == "s":
            subtract_scaled(data, base, scale, left)
        else:
            subtract_folded(data, base, width, left)
        return left

    def _store_planes(self, data: Bytes, width: int, ways: str, out: Bytes) -> list[tuple[str, int]]:
        """Letter and length of each lane."""
        lanes, position, byte = list[tuple[str, int]](), 0, 0
        while byte < width:
            if byte % 2 == 0 and ways[byte : byte + 2] == "RR":
                letter, length = "w", self._store_pair(data, width, byte, out[position:])
            else:
                letter, length = self._store_plane(data, width, byte, ways[byte], out[position:])
            lanes.append((letter, length))
            position = _pad(out, position + length)
            byte += _SPAN[letter]
        return lanes

    def _store_pair(self, data: Bytes, width: int, byte: int, out: Bytes) -> int:
        length = 2 * (len(data) // width)
        self._cutter.take(data, width, byte, out[:length], span=2)
        return length

    def _store_plane(self, data: Bytes, width: int, byte: int, way: str, out: Bytes) -> tuple[str, int]:
        count = len(data) // width
        if way == "R":
            self._cutter.take(data, width, byte, out[:count])
            return "r", count
        plane = self._plane[:count]
        self._cutter.take(data, width, byte, plane)
        frame = self._compressors[way].compress(plane.data)
        if len(frame) < count:
            out[: len(frame)] = np.frombuffer(frame, np.uint8)
            return "z", len(frame)
        np.copyto(out[:count], plane)
        return "r", count

    def decode(self, stored: Bytes, block: EncodedBlock, width: int, out: Bytes) -> None:
        """Decode the lanes of ``stored`` into ``out``, whose length is the decoded length.

        Of a difference they are the planes: :mod:`milepost.checkpoint.differences` makes numbers of them.

        Raises:
            DamagedBlockError: The stored bytes are no such block; ``out`` is then partly overwritten.
        """
        sizes = lane_sizes(block.encoding, width, len(out))
        if sizes is None or len(sizes) != len(block.lanes):
            raise DamagedBlockError(f"encoding {block.encoding!r} does not fit numbers of {width} bytes")
        if block.encoding == RAW:
            out[:] = stored[: len(out)]
            return
        position = byte = 0
        for letter, length, size in zip(lane_letters(block.encoding), block.lanes, sizes, strict=True):
            lane = stored[position : position + length]
            plane = self._decompress(lane, size) if letter == "z" else lane
            self._cutter.put(plane, width, byte, out, span=_SPAN[letter])
            position += padded(length, LANE_ALIGNMENT)
            byte += _SPAN[letter]

    def _decompress(self, frame: Bytes, size: int) -> Bytes:
        """The plane of a frame. What the frame declares is checked first: zstandard would allocate it unseen."""
        plane = self._plane[:size]
        try:
            declared = zstandard.get_frame_parameters(frame.data).content_size
            if declared != size:
                raise DamagedBlockError(f"a plane of {size} bytes declares {declared}")
            with self._decompressor.stream_reader(frame.data) as reader:
                done = reader.readinto(plane)
        except zstandard.ZstdError as error:
            raise DamagedBlockError(f"a plane is no zstd frame ({error})") from None
        if done != size:
            raise DamagedBlockError(f"a plane of {size} bytes ends after {done}")
        return plane


def _is_raw(plan: str, width: int, base: Bytes | None) -> bool:
    """Whether a block is kept as it is: nothing to gain, or the base is not there or not fit for the difference."""
    if plan == RAW or not plan.strip("R"):
        return True
    relation = plan[:-width]
    return bool(relation) and (base is None or (relation == "s" and not is_scalable(base)))


def _pad(out: Bytes, length: int) -> int:
    end = padded(length, LANE_ALIGNMENT)
    out[length:end] = 0
    return end
