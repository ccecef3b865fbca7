"""What is in a snapshot, before anything is written: the digest of each tensor, and the best way to store each region?

The way is found by a sample, never by a tensor's name: what it takes alone, as integer difference to the base, and as
difference to the scaled base. Whether the differences are worth having a base is decided for the whole file, because
the base costs a whole file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from milepost.checkpoint.base import BaseRegions
from milepost.checkpoint.codec import BlockCodec, Bytes
from milepost.checkpoint.habits import Habits
from milepost.checkpoint.keyframes import pays, repays
from milepost.checkpoint.manifest import Manifest
from milepost.checkpoint.parallel import share_out
from milepost.checkpoint.regions import Layout, Plan, Source, sample_of
from milepost.checkpoint.subtraction import (
    SCALED_WIDTH,
    is_scalable,
    scale_between,
    subtract_folded,
    subtract_scaled,
)

__all__ = ["Base", "Surveyor"]

#: Numbers of a dtype that scaling is tried for.
_FLOATS = frozenset({"float32", "complex64"})


class Base:
    """The keyframe of a save, as far as a writer needs it.

    Args:
        regions: Gives its decoded blocks.
        manifest: What it says about itself.
    """

    def __init__(self, regions: BaseRegions, manifest: Manifest) -> None:
        self.regions = regions
        self._tensors = {tensor.name: tensor for tensor in manifest.tensors}

    def region_for(self, source: Source) -> int | None:
        """The region that holds the same tensors, if it is as long and its numbers as wide."""
        index = self.regions.region_for(source.name)
        if index is None:
            return None
        region = self.regions.regions[index]
        return index if (region.nbytes, region.width) == (source.nbytes, source.width) else None

    def has(self, name: str, region: int, offset: int, digest: int) -> bool:
        """Whether the tensor ``name`` lies at that place with these bytes."""
        tensor = self._tensors.get(name)
        return tensor is not None and (tensor.region, tensor.offset, tensor.digest) == (region, offset, digest)


@dataclass(frozen=True, slots=True)
class _Window:
    """A tensor in its region: its index, name, and bytes from ``start`` to ``end``."""

    index: int
    name: str
    start: int
    end: int


class Surveyor:
    """Looks over a snapshot.

    Args:
        layout: Its regions; their plans and bases are filled in.
        base: What they may be differences to; None: all stand alone.
        habits: Plans of earlier saves; None: all are found by sampling.
        compression: Whether plans are wanted at all.

    Attributes:
        digests: xxh3_128 of each tensor.
    """

    def __init__(self, layout: Layout, *, base: Base | None, habits: Habits | None, compression: bool) -> None:
        self.digests = [0] * len(layout.entries)
        self._layout = layout
        self._base = base
        self._habits = habits
        self._compression = compression
        self._windows: dict[int, list[_Window]] = {}
        for index, (entry, (region, offset)) in enumerate(zip(layout.entries, layout.places, strict=True)):
            window = _Window(index, entry.name, offset, offset + entry.nbytes)
            self._windows.setdefault(region, []).append(window)

    def survey(self, *, threads: int, keep: int) -> int:
        """Hash everything and plan every region; returns about how many bytes will be stored.

        Without compression nothing is planned, and :meth:`hash` is left to whoever writes and has to wait for the disk.

        Args:
            threads: How many look.
            keep: How many checkpoints will hold differences to the base.

        Raises:
            CorruptDataError: The base is damaged.
        """
        if self._compression:
            order = sorted(self._windows, key=lambda region: -self._layout.sources[region].nbytes)
            share_out(order, self._look_at, threads=threads)
        if self._base is not None:
            self._weigh(keep)
        return sum(map(_expected, self._layout.sources))

    def _look_at(self, regions: Iterator[int]) -> None:
        codec = BlockCodec()
        for index in regions:
            self.hash(index)
            source = self._layout.sources[index]
            if source.nbytes:
                self._relate(source, self._windows[index])
                self._plan(source, codec)
            source.let_go()

    def hash(self, region: int) -> None:
        """Take the digests of a region's tensors."""
        content = self._layout.sources[region].content()
        for window in self._windows[region]:
            self.digests[window.index] = xxhash.xxh3_128_intdigest(content[window.start : window.end].data)

    def _relate(self, source: Source, windows: list[_Window]) -> None:
        """Find the region of the base that this one is to be compared with, and whether they are known to be equal."""
        region = self._base.region_for(source) if self._base is not None else None
        if self._base is None or region is None:
            return
        source.base = region
        # bytes that belong to no tensor may differ: nobody reads them
        source.same = all(self._base.has(w.name, region, w.start, self.digests[w.index]) for w in windows)

    def _plan(self, source: Source, codec: BlockCodec) -> None:
        compared = source.base is not None and not source.same
        learnt = self._habits.plan_of(source, beside=compared) if self._habits is not None else None
        source.plan = learnt or self._found(source, codec, compared=compared)
        if compared and source.plan.beside == source.plan.alone and source.plan.beside_share > 0:
            source.base = None  # its blocks would be decoded for nothing

    def _found(self, source: Source, codec: BlockCodec, *, compared: bool) -> Plan:
        index = len(source.blocks) // 2
        sample = sample_of(source.block(index), source.width)
        alone, taken = codec.plan(sample, source.width)
        share = taken / len(sample)
        if not compared or self._base is None or source.base is None:
            return Plan(alone=alone, alone_share=share)
        block = self._base.regions.block(source.base, index)
        beside, beside_taken = self._beside(source, codec, sample, sample_of(block, source.width), (alone, taken))
        return Plan(alone=alone, alone_share=share, beside=beside, beside_share=beside_taken / len(sample))

    @staticmethod
    def _beside(
        source: Source, codec: BlockCodec, sample: Bytes, base: Bytes, alone: tuple[str, int]
    ) -> tuple[str, int]:
        """The best of all ways for a region with a base, and the bytes of the sample."""
        if np.array_equal(sample, base):  # what has changed lies elsewhere, and most differences are nothing
            return "d" + "L" * source.width, 0
        left = np.empty_like(sample)
        subtract_folded(sample, base, source.width, left)
        ways = [alone, _behind("d", codec.plan(left, source.width))]
        if source.dtype in _FLOATS and source.width == SCALED_WIDTH and is_scalable(base):
            scale = scale_between(sample, base)
            if scale is not None:
                subtract_scaled(sample, base, scale, left)
                ways.append(_behind("s", codec.plan(left, source.width)))
        return min(ways, key=lambda way: way[1])

    def _weigh(self, keep: int) -> None:
        """Let go of the base, of all of it or of all but what is equal, unless it pays."""
        sources = [source for source in self._layout.sources if source.plan is not None]
        alone = sum(_alone(source) for source in sources)
        if pays(alone, sum(map(_expected, sources)), keep=keep):
            return
        equal = sum(_alone(source) for source in sources if source.same)
        for source in sources:
            if not source.same or not repays(alone, equal, keep=keep):
                source.base, source.same = None, False


def _behind(relation: str, way: tuple[str, int]) -> tuple[str, int]:
    return relation + way[0], way[1]


def _alone(source: Source) -> int:
    return source.nbytes if source.plan is None else int(source.plan.alone_share * source.nbytes)


def _expected(source: Source) -> int:
    if source.same:
        return 0
    if source.plan is None or source.base is None:
        return _alone(source)
    return int(source.plan.beside_share * source.nbytes)
