"""To what are the blocks of a file differences, and is it still that?

A checkpoint may name one other file of its folder, the *base* (its keyframe), and hold blocks that are differences to
blocks of it. Nothing of a base is held in memory but the block in hand.

**Invariants**: a base is used only if its manifest is the very one that the differences were made against, if it has no
base itself, and if each region that is referred to has the same length and number width. So a chain, a circle or a
file that took its name is refused before anything is decoded.

**On crash**: nothing is written here.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Protocol

from milepost.checkpoint.block_reader import BlockReader
from milepost.checkpoint.codec import BLOCK_BYTES, Bytes
from milepost.checkpoint.manifest import Manifest, Region, StoredTensor
from milepost.core.errors import CorruptDataError

__all__ = ["BaseRegions", "OpenFile", "check_base"]


class OpenFile(Protocol):
    """What is asked of an open checkpoint here."""

    @property
    def path(self) -> Path:
        """Its name in errors."""

    @property
    def manifest(self) -> Manifest:
        """What it says about itself."""

    @property
    def manifest_digest(self) -> int:
        """xxh3_128 of the text of that."""

    def reader(self) -> BlockReader:
        """A reader of its blocks for one thread."""


class BaseRegions:
    """The regions of an open base file, decoded block by block. Any number of threads may ask.

    Args:
        file: Open for as long as this is used.

    Attributes:
        regions: Those of the file.
    """

    def __init__(self, file: OpenFile) -> None:
        self.regions: tuple[Region, ...] = file.manifest.regions
        self._file = file
        self._region_of = {tensor.name: tensor.region for tensor in file.manifest.tensors}
        self._tensors: dict[int, list[StoredTensor]] = {}
        for tensor in file.manifest.tensors:
            self._tensors.setdefault(tensor.region, []).append(tensor)
        self._of_thread = threading.local()

    def region_for(self, name: str) -> int | None:
        """Index of the region that the tensor ``name`` lies in, or None if the base has no such tensor."""
        return self._region_of.get(name)

    def block(self, region: int, index: int) -> Bytes:
        """One decoded block, valid until this thread's next call.

        Raises:
            CorruptDataError: It is damaged; the message names the base file, tensor and offset.
            StorageError: The disk refuses.
        """
        reader: BlockReader | None = getattr(self._of_thread, "reader", None)
        if reader is None:
            reader = self._of_thread.reader = self._file.reader()
        return reader.read(self.regions[region], index, self._owner(region, index))

    def _owner(self, region: int, index: int) -> str:
        start = index * BLOCK_BYTES
        tensors = self._tensors.get(region, [])
        return next((t.name for t in tensors if t.offset <= start < t.offset + t.nbytes), f"of region {region}")


def check_base(path: Path, manifest: Manifest, base: OpenFile) -> None:
    """Refuse ``base`` unless it is what the file ``path`` with this ``manifest`` holds differences to.

    Raises:
        CorruptDataError: The message names both files.
    """
    expected = manifest.base
    if expected is None or base.manifest_digest != expected.digest:
        raise _refused(path, base, "is not the file that it was when the differences were taken")
    if base.manifest.base is not None:
        raise _refused(path, base, "needs a base itself")
    regions = base.manifest.regions
    for region in manifest.regions:
        if region.base is None:
            continue
        found = regions[region.base.region] if region.base.region < len(regions) else None
        if found is None or (found.nbytes, found.width) != (region.nbytes, region.width):
            raise _refused(path, base, f"has no region {region.base.region} of {region.nbytes} bytes like the one here")


def _refused(path: Path, base: OpenFile, what: str) -> CorruptDataError:
    return CorruptDataError(
        f"{path}: its base {base.path} {what}", cure="put back the file that had this name, or load another checkpoint"
    )
