"""Where do the blocks of an open checkpoint come from: its file, a copy, or the file it holds differences to?

**Invariants**: the base is looked for only when a block needs it, and checked as a whole before a block is decoded.

**On crash**: nothing is written here.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

from milepost.checkpoint.base import BaseRegions, check_base
from milepost.checkpoint.block_reader import BlockFile, BlockReader
from milepost.checkpoint.codec import BLOCK_BYTES, DIFFERENCES
from milepost.checkpoint.manifest import BaseFile, Block, Manifest, StoredTensor
from milepost.checkpoint.opening import open_files
from milepost.core.errors import CorruptDataError, InvalidCallError, NotFoundError

__all__ = ["BlockSource"]


class BlockSource:
    """The open files of one checkpoint; closed with :meth:`close`, or when nobody has it any more.

    Args:
        path: The file.
        copies: Folders that may have copies of it, and of its base.
        digest: Of the manifest that is wanted; None: whichever is found.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: It is no checkpoint, a later version, or damaged.
        StorageError: The disk refuses.

    Attributes:
        path: The file.
        manifest: What it says about itself.
        manifest_digest: xxh3_128 of the manifest's text.
        size: Length of the file.
        files: Where its blocks are looked for, in this order.
        mended: Damage that copies made good so far, one sentence each, here and in the base.
    """

    def __init__(self, path: Path, copies: Sequence[Path] = (), *, digest: int | None = None) -> None:
        opened = open_files(path, copies, digest=digest)
        self.path = path
        self.manifest: Manifest = opened.manifest
        self.manifest_digest: int = opened.digest
        self.size = opened.size
        self.files = opened.files
        self.mended: list[str] = list(opened.mended)
        self._copies = copies
        self._base: tuple[BlockSource, BaseRegions] | None = None
        self._opening_base = threading.Lock()
        self._close = weakref.finalize(self, _close_all, opened.files)

    def close(self) -> None:
        """Close all files; nothing can be read any more."""
        self._close()
        if self._base is not None:
            self._base[0].close()

    def reader(self) -> BlockReader:
        """A reader of its blocks, for one thread."""
        return BlockReader(self.files, base=lambda: self._open_base()[1], note=self._note)

    def base(self) -> BlockSource:
        """The file it holds differences to, opened and checked.

        Raises:
            InvalidCallError: It names none.
            NotFoundError: It is not there.
            CorruptDataError: It is damaged, or not the file that it was.
            StorageError: The disk refuses.
        """
        return self._open_base()[0]

    def open_base_of(self, tensors: Iterable[StoredTensor]) -> None:
        """Open and check the base if a block of these tensors needs it. Raises as :meth:`base` does."""
        if self.manifest.base is not None and any(
            block.encoded.encoding[:1] in DIFFERENCES for tensor in tensors for block in self.blocks_of(tensor)
        ):
            self._open_base()

    def blocks_of(self, tensor: StoredTensor) -> tuple[Block, ...]:
        """The blocks that a tensor lies in."""
        end = -(-(tensor.offset + tensor.nbytes) // BLOCK_BYTES) if tensor.nbytes else 0
        return self.manifest.regions[tensor.region].blocks[tensor.offset // BLOCK_BYTES : end]

    def _open_base(self) -> tuple[BlockSource, BaseRegions]:
        with self._opening_base:
            if self._base is None:
                source = _base_of(self.path, self.manifest, self._copies)
                self.mended += source.mended
                source.mended = self.mended
                self._base = source, BaseRegions(source)
            return self._base

    def _note(self, sentence: str) -> None:
        if sentence not in self.mended:
            self.mended.append(sentence)


def _close_all(files: Iterable[BlockFile]) -> None:
    for file in files:
        os.close(file.fd)


def _base_of(path: Path, manifest: Manifest, copies: Sequence[Path]) -> BlockSource:
    base = manifest.base
    if base is None:
        raise InvalidCallError(f"{path} has no base", cure="ask for one only if the manifest names it")
    what = f"{path} holds differences to {base.filename!r} (step {base.step})"
    try:
        source = BlockSource(path.parent / base.filename, copies, digest=base.digest)
    except NotFoundError:
        raise NotFoundError(f"{what}, which is not there", cure=_cure(path, base)) from None
    except CorruptDataError as error:
        raise CorruptDataError(f"{what}, but {error.what}", cure=_cure(path, base), kind=error.kind) from None
    try:
        check_base(path, manifest, source)
    except CorruptDataError:
        source.close()
        raise
    return source


def _cure(path: Path, base: BaseFile) -> str:
    folder = f"put {base.filename} back into {path.parent}"
    return f"{folder}, name a folder that has it (copies=[...]), or load another checkpoint"
