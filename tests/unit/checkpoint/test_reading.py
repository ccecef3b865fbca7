"""No damaged file gives a wrong tensor, and every error says where the damage is."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from milepost.checkpoint.commit import verify
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from tests.unit.checkpoint.container_samples import run_python, save

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "weight": np.linspace(-1, 1, 60, dtype=np.float32),
    "bias": np.arange(6, dtype=np.float32),
    "step": np.array(700),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoint_x_1.milepost", ARRAYS)


def read_or_refuse(path: Path) -> bool:
    """Whether the file was refused; if it was not, all that it gave was right."""
    try:
        with open_checkpoint(path) as file:
            found = file.read_all()
            alone = file["bias"].numpy()
            step = file.info.step
    except CorruptDataError as error:
        return str(path) in str(error)
    assert found.keys() == ARRAYS.keys()
    assert all(found[name].tobytes() == array.tobytes() for name, array in ARRAYS.items())
    assert alone.tobytes() == ARRAYS["bias"].tobytes()
    assert step == 700
    return False


def parts(path: Path) -> list[range]:
    """Where header, blocks, manifest and trailer lie; between them is padding that nobody reads."""
    with open_checkpoint(path) as file:
        blocks = [range(b.offset, b.end) for region in file.manifest.regions for b in region.blocks]
    content = path.read_bytes()
    manifest = content.index(b'{"format"')
    length = int.from_bytes(content[-40:-32], "little")
    return [range(64), *blocks, range(manifest, manifest + length), range(len(content) - 64, len(content))]


def test_no_flipped_bit_anywhere_gives_a_wrong_tensor(path: Path) -> None:
    content = path.read_bytes()
    guarded = {offset for part in parts(path) for offset in part}
    padding = [offset for offset in range(len(content)) if offset not in guarded and offset % 61 == 0]
    with open(path, "r+b", buffering=0) as file:
        for offset in (*guarded, *padding):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([content[offset] ^ 1 << bit]), offset)
                assert read_or_refuse(path) == (offset in guarded), (offset, bit)
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)
    assert path.read_bytes() == content


def test_no_truncation_gives_a_tensor(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        if length % 64 in {0, 1, 63} or length > len(content) - 200:
            path.write_bytes(content[:length])
            assert read_or_refuse(path)


def test_a_hole_of_zeros_gives_no_wrong_tensor(path: Path) -> None:
    content = path.read_bytes()
    for start in range(0, len(content), 1024):
        path.write_bytes(content[:start] + bytes(1024) + content[start + 1024 :])
        assert read_or_refuse(path) or content[start : start + 1024] == bytes(1024)


def test_a_piece_missing_in_the_middle_is_noticed_when_the_file_is_opened(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + content[8192:])
    with pytest.raises(CorruptDataError, match="the trailer speaks of 12288 bytes"):
        open_checkpoint(path)


def test_the_digest_of_a_tensor_catches_what_the_checksums_of_its_blocks_cannot(path: Path) -> None:
    """As if the codec, not the disk, had changed a number: all checksums of stored bytes are right."""
    content = bytearray(path.read_bytes())
    _, block, manifest, trailer = parts(path)[0], parts(path)[1], parts(path)[-2], parts(path)[-1]
    before = f"{xxhash.xxh3_64_intdigest(content[block.start : block.stop]):016x}".encode()
    content[block.start] ^= 1
    after = f"{xxhash.xxh3_64_intdigest(content[block.start : block.stop]):016x}".encode()
    text = content[manifest.start : manifest.stop].replace(before, after)
    content[manifest.start : manifest.stop] = text
    sealed = content[trailer.start : trailer.stop - 8]
    sealed[32:48] = xxhash.xxh3_128_digest(text)
    content[trailer.start :] = sealed + struct.pack("<Q", xxhash.xxh3_64_intdigest(sealed))
    path.write_bytes(content)
    with open_checkpoint(path) as file, pytest.raises(CorruptDataError, match=r"'weight' .*its digest is wrong"):
        file.read_all()
    with pytest.raises(CorruptDataError, match="its digest is wrong"):
        verify(path)


def test_appended_bytes_are_refused(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(4096))
    assert read_or_refuse(path)


@pytest.mark.parametrize("compression", [True, False])
def test_damage_is_named_by_file_tensor_and_offset_and_the_rest_stays_readable(
    tmp_path: Path, compression: bool
) -> None:
    arrays = {name: np.random.default_rng(0).standard_normal((300_000,)) for name in ("left", "right")}
    path = save(tmp_path / "checkpoint_1.milepost", arrays, compression=compression)
    with open_checkpoint(path) as file:
        offset = file.manifest.regions[file.tensors["right"].region].blocks[1].offset
    with open(path, "r+b") as stream:
        stream.seek(offset + 1000)
        byte = stream.read(1)
        stream.seek(offset + 1000)
        stream.write(bytes([byte[0] ^ 1]))
    where = rf"{re.escape(str(path))}: the tensor 'right' is damaged at offset {offset} "
    with open_checkpoint(path) as file:
        assert (file["left"] == arrays["left"]).all()
        with pytest.raises(CorruptDataError, match=where):
            file["right"].numpy()
        with pytest.raises(CorruptDataError, match=where):
            file.read_all()
    with pytest.raises(CorruptDataError, match=where):
        verify(path)


def test_a_tensor_is_read_into_memory_of_the_caller(path: Path) -> None:
    target = np.zeros((10, 6), np.float32)
    with open_checkpoint(path) as file:
        file.read_into("weight", target)
        assert (target.ravel() == ARRAYS["weight"]).all()
        both = {"bias": bytearray(24), "step": np.zeros((), np.int64)}
        file.read_many_into(both, threads=2)
        assert both["bias"] == ARRAYS["bias"].tobytes()
        assert both["step"] == 700


@pytest.mark.parametrize("buffer", [bytes(24), bytearray(23), np.zeros(12, np.float32)[::2]])
def test_memory_that_does_not_fit_is_refused(path: Path, buffer: Any) -> None:
    with open_checkpoint(path) as file, pytest.raises(InvalidInputError, match="'bias' needs 24 bytes"):
        file.read_into("bias", buffer)


def test_what_is_not_there_is_said(path: Path, tmp_path: Path) -> None:
    with open_checkpoint(path) as file, pytest.raises(NotFoundError, match="no tensor 'heads'"):
        _ = file["heads"]
    with pytest.raises(NotFoundError, match="no checkpoint"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(CorruptDataError, match="no file"):
        open_checkpoint(tmp_path)


def test_a_file_of_a_later_version_is_told_from_a_damaged_one(path: Path) -> None:
    body = struct.pack("<8sI44x", b"\x89MPCKPT\n", 2)
    with open(path, "r+b") as stream:
        stream.write(body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body)))
    with pytest.raises(CorruptDataError, match="format version 2") as caught:
        open_checkpoint(path)
    assert caught.value.kind == "unknown-version"


def test_the_file_is_closed_with_its_reader_and_when_it_is_refused(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with open_checkpoint(path):
        pass
    file = open_checkpoint(path)
    del file
    path.write_bytes(b"x" * 5000)
    assert read_or_refuse(path)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_reading_and_writing_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "import numpy as np; from tests.unit.checkpoint.container_samples import save\n"
        "from milepost.checkpoint.reading import open_checkpoint\n"
        "path = save(Path(sys.argv[1]) / 'checkpoint_1.milepost', {'w': np.ones(3)})\n"
        "assert open_checkpoint(path)['w'].numpy().sum() == 3\n"
        "assert 'torch' not in sys.modules"
    )
    ended = run_python(code, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
