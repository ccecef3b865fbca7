"""What does a checkpoint say about itself, and is it possible?

The manifest is one JSON text: regions (stretches of bytes and their blocks), tensors (windows of regions), facts of the
run, and the typed tree. ``docs/format.md`` has its schema.

**Invariants**: a ``Manifest`` that :func:`parse_manifest` returned is sound. Its blocks lie inside the file, behind the
header, without overlap; every encoding fits its numbers; every tensor lies inside its region, its name is unique, and
it has no more elements than bytes stored for them. So a reader may allocate and index by it without looking again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from milepost.checkpoint.codec import BLOCK_BYTES, DIFFERENCES, RAW, EncodedBlock, lane_letters, lane_sizes
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.plain_values import Node
from milepost.core.errors import CorruptDataError

__all__ = [
    "BaseFile",
    "Block",
    "Manifest",
    "Region",
    "RegionBase",
    "StoredTensor",
    "block_count",
    "manifest_text",
    "parse_manifest",
    "span_of",
]

_LARGEST = 1 << 62
_MOST_BLOCKS = 1 << 22
_MOST_DIMENSIONS = 64
_WIDTHS = (1, 2, 4, 8)
_HEXADECIMAL = re.compile("[0-9a-f]+")
# one name inside the folder: no separator of any system, no stream, nothing hidden
_FILENAME = re.compile(r"[\w][^/\\:\x00-\x1f]{0,250}\.milepost")
_SIDE_FILE = re.compile(r"side_files/(?!\.{1,2}$)[^/\\:\x00-\x1f]{1,250}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Where a block lies in the file.

    Attributes:
        offset: Of its first stored byte.
        encoded: How it is stored.
        checksum: xxh3_64 of the stored bytes.
    """

    offset: int
    encoded: EncodedBlock
    checksum: int

    @property
    def end(self) -> int:
        """Offset after its last stored byte."""
        return self.offset + self.encoded.stored


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionBase:
    """What the blocks of a region may be differences to.

    Attributes:
        region: Index of a region of the same length and width in the base file.
        scale: float32 that the base's numbers are multiplied by for blocks of encoding ``s``, as its 32 bits.
    """

    region: int
    scale: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFile:
    """The keyframe that a file holds differences to; it lies in the same folder and refers to no other.

    Attributes:
        filename: Its name, without any folder.
        digest: xxh3_128 of its manifest, so that another file of that name is not taken for it.
        step: Its step, for people.
    """

    filename: str
    digest: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A stretch of bytes that holds one tensor, several small ones, or a storage that several tensors share.

    Attributes:
        nbytes: Its length when decoded.
        width: Bytes of the numbers in it, by which the codec splits.
        blocks: Each holds the next :data:`BLOCK_BYTES` of it, the last one the rest.
        base: Where the base file holds what blocks may be differences to; None: all blocks stand alone.
    """

    nbytes: int
    width: int
    blocks: tuple[Block, ...]
    base: RegionBase | None = None

    def block_bytes(self, index: int) -> int:
        """Decoded length of one block."""
        return min(BLOCK_BYTES, self.nbytes - index * BLOCK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor as stored.

    Attributes:
        name: Unique in the file.
        dtype: A name of :data:`milepost.checkpoint.dtypes.DTYPES`.
        shape: Elements along each dimension.
        stride: In elements, none negative; None if contiguous (C order).
        region: Index of its region.
        offset: Of its first byte in the decoded region.
        nbytes: From its first to its last byte.
        digest: xxh3_128 of these bytes.
        original: dtype that it had before a lossy setting made it ``dtype``; None: nothing was lost.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    region: int
    offset: int
    nbytes: int
    digest: int
    original: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole description of a checkpoint.

    Attributes:
        run: Typed tree of the facts of the run.
        tree: Typed tree of the state; its leaves are indices into ``tensors``.
        tensors: In the order of the tree's indices, then the side files.
        side_files: Names of the embedded files; each is the uint8 tensor of the same name at the end of ``tensors``.
        regions: What the tensors lie in.
        writer: Versions of what wrote it.
        base: The file that blocks may be differences to; None: it loads alone.
    """

    run: Node
    tree: Node
    tensors: tuple[StoredTensor, ...]
    side_files: tuple[str, ...]
    regions: tuple[Region, ...]
    writer: dict[str, str]
    base: BaseFile | None = None


def block_count(nbytes: int) -> int:
    """How many blocks a region of ``nbytes`` has."""
    return -(-nbytes // BLOCK_BYTES)


def span_of(shape: tuple[int, ...], stride: tuple[int, ...] | None, itemsize: int) -> int | None:
    """Bytes from the first to the last element of a tensor, or None if it has more elements than room for them.

    A stride of 0 would let a few stored bytes stand for any number of elements, and so for any amount of memory.
    """
    count = math.prod(shape)
    if stride is None or count == 0:
        return count * itemsize
    if len(stride) != len(shape) or min(stride, default=0) < 0:
        return None
    span = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    return span * itemsize if count <= span else None


def manifest_text(manifest: Manifest) -> bytes:
    """The JSON of a manifest."""
    content = {
        "format": "milepost checkpoint",
        "block_bytes": BLOCK_BYTES,
        "writer": manifest.writer,
        "run": manifest.run,
        "base": None if manifest.base is None else _base_row(manifest.base),
        "side_files": manifest.side_files,
        "tensors": [
            [t.name, t.dtype, t.shape, t.stride, t.region, t.offset, t.nbytes, f"{t.digest:032x}", t.original]
            for t in manifest.tensors
        ],
        "regions": [
            [
                r.nbytes,
                r.width,
                [[b.offset, b.encoded.encoding, b.encoded.lanes, f"{b.checksum:016x}"] for b in r.blocks],
                None if r.base is None else [r.base.region, f"{r.base.scale:08x}"],
            ]
            for r in manifest.regions
        ],
        "tree": manifest.tree,
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def _base_row(base: BaseFile) -> list[Node]:
    return [base.filename, f"{base.digest:032x}", base.step]


def parse_manifest(text: bytes, *, first: int, end: int) -> Manifest:
    """The manifest of a file whose blocks lie between the offsets ``first`` and ``end``.

    Raises:
        CorruptDataError: It is no manifest, or an impossible one.
    """
    try:
        content = json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        _refuse(f"is no JSON ({error})")
    fields = _typed(content, dict, "the manifest")
    if fields.get("block_bytes") != BLOCK_BYTES:
        _refuse(f"has blocks of {fields.get('block_bytes')!r} bytes instead of {BLOCK_BYTES}")
    base = None if fields.get("base") is None else _base_file(fields["base"])
    regions = tuple(_regions(_list(fields, "regions"), first, end, has_base=base is not None))
    tensors = tuple(_tensors(_list(fields, "tensors"), regions))
    side_files = tuple(map(_side_file, _list(fields, "side_files")))
    if list(side_files) != [t.name for t in tensors[len(tensors) - len(side_files) :]]:
        _refuse("lists side files that are not its last tensors")
    return Manifest(
        run=fields.get("run"),
        tree=fields.get("tree"),
        tensors=tensors,
        side_files=side_files,
        regions=regions,
        writer=_typed(fields.get("writer"), dict, "the writer"),
        base=base,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:  # two readers could take it for two different files
            _refuse(f"has {name!r:.60} twice in one object")
        content[name] = value
    return content


def _side_file(name: Node) -> str:
    if not _SIDE_FILE.fullmatch(_typed(name, str, "a side file")):
        _refuse(f"names {name!r:.60} for a side file, which is no plain name")
    return str(name)


def _base_file(node: Node) -> BaseFile:
    filename, digest, step = _row(node, 3, "the base")
    if not _FILENAME.fullmatch(_typed(filename, str, "the base's name")):
        _refuse(f"names {filename!r:.60} as its base, which is no name of a checkpoint in its folder")
    return BaseFile(filename=filename, digest=_hexadecimal(digest, 32), step=_whole(step, "the base's step"))


def _region_base(node: Node, *, has_base: bool) -> RegionBase | None:
    if node is None:
        return None
    if not has_base:
        _refuse("has a region with a base, and names no base")
    region, scale = _row(node, 2, "a region's base")
    return RegionBase(region=_whole(region, "a region's index"), scale=_hexadecimal(scale, 8))


def _regions(nodes: list[Node], first: int, end: int, *, has_base: bool) -> Iterator[Region]:
    extents: list[tuple[int, int]] = []
    count = 0
    for node in nodes:
        nbytes, width, block_nodes, base_node = _row(node, 4, "a region")
        _whole(nbytes, "a region's length")
        if width not in _WIDTHS or len(_typed(block_nodes, list, "blocks")) != block_count(nbytes):
            _refuse(f"has a region of {nbytes} bytes, width {width!r} and {len(block_nodes)} blocks")
        count += len(block_nodes)
        if count > _MOST_BLOCKS:
            _refuse(f"has more than {_MOST_BLOCKS} blocks")
        blocks = [
            _block(block, width, min(BLOCK_BYTES, nbytes - i * BLOCK_BYTES)) for i, block in enumerate(block_nodes)
        ]
        base = _region_base(base_node, has_base=has_base)
        if base is None and any(block.encoded.encoding[:1] in DIFFERENCES for block in blocks):
            _refuse("has a block that is a difference to nothing")
        extents += ((block.offset, block.end) for block in blocks if block.encoded.lanes)
        yield Region(nbytes=nbytes, width=width, blocks=tuple(blocks), base=base)
    for start, stop in sorted(extents):
        if start < first or stop > end:
            _refuse(f"has a block at {start}..{stop}, beside the room from {first} to {end} or inside another block")
        first = stop


def _block(node: Node, width: int, nbytes: int) -> Block:
    offset, encoding, lane_nodes, checksum = _row(node, 4, "a block")
    sizes = lane_sizes(_typed(encoding, str, "an encoding"), width, nbytes)
    lanes = tuple(_whole(length, "a lane's length") for length in _typed(lane_nodes, list, "lanes"))
    if sizes is None or len(sizes) != len(lanes):
        _refuse(f"has a block of {nbytes} bytes in {len(lanes)} lanes encoded as {encoding!r:.40}")
    letters = "-" if encoding == RAW else lane_letters(encoding)
    for letter, length, size in zip(letters, lanes, sizes, strict=True):
        if (length != size) if letter != "z" else not 0 < length < size:
            _refuse(f"has a lane of {length} bytes for {size} bytes encoded as {encoding!r}")
    encoded = EncodedBlock(encoding=encoding, lanes=lanes)
    return Block(offset=_whole(offset, "an offset"), encoded=encoded, checksum=_hexadecimal(checksum, 16))


def _tensors(nodes: list[Node], regions: tuple[Region, ...]) -> Iterator[StoredTensor]:
    names: set[str] = set()
    for node in nodes:
        name, dtype, shape, stride, region, offset, nbytes, digest, original = _row(node, 9, "a tensor")
        if _typed(name, str, "a tensor's name") in names:
            _refuse(f"has two tensors named {name!r}")
        names.add(name)
        tensor = StoredTensor(
            name=name,
            dtype=_typed(dtype, str, "a dtype"),
            shape=_dimensions(shape),
            stride=None if stride is None else _dimensions(stride),
            region=_whole(region, "a region's index"),
            offset=_whole(offset, "an offset"),
            nbytes=_whole(nbytes, "a tensor's length"),
            digest=_hexadecimal(digest, 32),
            original=None if original is None else _known_dtype(original),
        )
        _check_tensor(tensor, regions)
        yield tensor


def _known_dtype(name: Any) -> str:
    if _typed(name, str, "a dtype") not in DTYPES:
        _refuse(f"has the unknown dtype {name!r:.60}")
    return str(name)


def _check_tensor(tensor: StoredTensor, regions: tuple[Region, ...]) -> None:
    element = DTYPES.get(tensor.dtype)
    if element is None:
        _refuse(f"has the tensor {tensor.name!r} of the unknown dtype {tensor.dtype!r}")
    if span_of(tensor.shape, tensor.stride, element.itemsize) != tensor.nbytes:
        _refuse(f"has the tensor {tensor.name!r} of shape {tensor.shape} in {tensor.nbytes} bytes")
    if tensor.region >= len(regions) or tensor.offset + tensor.nbytes > regions[tensor.region].nbytes:
        _refuse(f"has the tensor {tensor.name!r} outside of its region")


def _refuse(what: str) -> NoReturn:
    raise CorruptDataError(f"the manifest {what}", cure="load another checkpoint")


def _typed(value: Any, cls: type, what: str) -> Any:
    if type(value) is not cls:
        _refuse(f"has {value!r:.60} for {what}")
    return value


def _list(fields: dict[str, Node], name: str) -> list[Node]:
    return list(_typed(fields.get(name), list, name))


def _row(node: Node, length: int, what: str) -> list[Node]:
    if len(_typed(node, list, what)) != length:
        _refuse(f"has {len(node)} values for {what} instead of {length}")
    return list(node)


def _whole(value: Any, what: str) -> int:
    if not 0 <= _typed(value, int, what) <= _LARGEST:
        _refuse(f"has {value} for {what}")
    return int(value)


def _dimensions(node: Node) -> tuple[int, ...]:
    if len(_typed(node, list, "a shape")) > _MOST_DIMENSIONS:
        _refuse(f"has a tensor of {len(node)} dimensions")
    return tuple(_whole(length, "a dimension") for length in node)


def _hexadecimal(value: Any, digits: int) -> int:
    if len(_typed(value, str, "a digest")) != digits or not _HEXADECIMAL.fullmatch(value):
        _refuse(f"has {value!r:.60} for a digest")
    return int(value, 16)
