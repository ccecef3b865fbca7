"""Can any bytes make the reader of checkpoints do anything but read, or refuse with its own error?

``python -m torture.fuzz --runs 1000000`` changes files by coverage (needs ``atheris``). An input is a container: the
envelope's checksums are put right again, so that the fuzzer gets behind them to manifest, tree and codec.
"""

from __future__ import annotations

import argparse
import importlib
import struct
import sys
import tempfile
from pathlib import Path

import xxhash

from milepost.checkpoint.envelope import HEADER_BYTES, TRAILER_BYTES, header
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import MilepostError

__all__ = ["read_whatever_it_is", "resealed"]

_GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "v1"
_LONGEST_SEED = 20_000
_LARGEST_STATE = 64 << 20


def resealed(data: bytes) -> bytes:
    """The same bytes with header, digest of the manifest and trailer made right, where they are long enough for it."""
    if len(data) < HEADER_BYTES + TRAILER_BYTES:
        return data
    end = len(data) - TRAILER_BYTES
    start, length = struct.unpack_from("<QQ", data, end + 16)
    if start + length > end:
        start, length = min(4096, end), max(0, end - 4096)
    digest = xxhash.xxh3_128_digest(data[start : start + length])
    trailer = header()[:12] + bytes(4) + struct.pack("<QQ16sQ", start, length, digest, len(data))
    sealed = trailer + struct.pack("<Q", xxhash.xxh3_64_intdigest(trailer))
    return header() + data[HEADER_BYTES:end] + sealed


def read_whatever_it_is(path: Path) -> bool:
    """Read all that a file holds; False if it was refused.

    Raises:
        Exception: Anything but milepost's own errors is a finding.
    """
    try:
        with open_checkpoint(path) as file:
            if sum(tensor.nbytes for tensor in file.tensors.values()) > _LARGEST_STATE:
                return False
            file.read_all(threads=1)
            decode_tree(file.tree, leaf=lambda index: index)
            for name in file.side_files:
                file.read_side_file(name)
    except MilepostError:
        return False
    return True


def main() -> None:
    """Fuzz until a finding, or until ``--runs`` inputs."""
    parser = argparse.ArgumentParser(prog="python -m torture.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=0, help="end after so long; 0: never")
    given = parser.parse_args()
    try:
        atheris = importlib.import_module("atheris")  # it has no types, and few machines have it
    except ImportError:
        sys.exit(
            "install atheris to fuzz by coverage; tests/unit/checkpoint/test_mutations.py changes files without it"
        )
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for path in _GOLDEN.glob("*.milepost"):
            if path.stat().st_size <= _LONGEST_SEED:
                (corpus / path.name).write_bytes(path.read_bytes())
        target = Path(folder) / "checkpoint_1.milepost"

        def one(data: bytes) -> None:
            target.write_bytes(resealed(data))
            read_whatever_it_is(target)

        atheris.instrument_all()
        limits = [f"-runs={given.runs}", f"-max_len={_LONGEST_SEED}", f"-max_total_time={given.seconds}"]
        atheris.Setup(["fuzz", str(corpus), *limits, "-print_final_stats=1", f"-artifact_prefix={folder}/"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
