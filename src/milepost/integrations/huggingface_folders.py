"""Which folder that Trainer wrote is whole, so that a training can go on from it?

Trainer writes ``checkpoint-<step>`` in place, file by file, and syncs nothing: a kill leaves the newest folder torn, a
power loss leaves files of the right length with the wrong content. What tells is looked at: every shard of the weights
to its end, the CRC of every entry of the files that torch wrote, the blocks of milepost's, every JSON text, and that
the files of a save are all there. safetensors files have no checksum; :mod:`.huggingface_digests` gives every file one.

**Invariants**: nothing is unpickled, torch is not imported, and no file is changed. A folder is called whole only if
its ``trainer_state.json``, which Trainer writes last, belongs to it.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milepost.checkpoint.huggingface_folder import weight_files
from milepost.checkpoint.parallel import available_cores, share_out
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.safetensors_file import SafetensorsFile
from milepost.checkpoint.zip_check import ZipAnomalyError, check_zip
from milepost.core.errors import CorruptDataError, InvalidCallError, MilepostError, NotFoundError, StorageError
from milepost.core.saying import say
from milepost.environment.ranks import detect, meet
from milepost.integrations.huggingface_digests import DIGESTS, STATE_FILE, damaged, proven, read_json
from milepost.io.durable import storage_error

__all__ = ["FAST_FILE", "FAST_RANK_FILE", "FolderContent", "inspect_folder", "newest_checkpoint", "step_of"]

#: What :class:`MilepostTrainerMixin` writes instead of Trainer's own files; rank 0 has the first one.
FAST_FILE, FAST_RANK_FILE = "trainer.milepost", "trainer-rank{}.milepost"

_NAME = re.compile(r"checkpoint-(\d{1,18})")
_ARGUMENTS = "training_args.bin"
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", FAST_FILE, "rank*-of-*-optimizer.pt", "optimizer_*", "global_step*")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SHARDED = ("pytorch_model_fsdp_*", "global_step*")
_TORCH_ENDINGS = (".pt", ".pth", ".bin")
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
_PIECE = 8 << 20
_PATIENCE = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderContent:
    """A folder that was found whole.

    Attributes:
        path: The folder.
        step: Steps that are done.
        state: What ``trainer_state.json`` says.
        size: Bytes of all files.
        parts: ``model``, and ``optimizer`` if training can go on as it was.
    """

    path: Path
    step: int
    state: dict[str, Any]
    size: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """Bytes of a file that have a checksum of their own."""

    path: Path
    start: int
    length: int
    crc: int
    entry: str


def step_of(folder: str | os.PathLike[str]) -> int | None:
    """The step in the name of a folder of Trainer; None if it is called otherwise."""
    match = _NAME.fullmatch(Path(folder).name)
    return int(match[1]) if match else None


def newest_checkpoint(directory: str | os.PathLike[str]) -> str | None:
    """The newest ``checkpoint-<step>`` of an output folder that is whole and verified, or None if there is none.

    Meant for ``trainer.train(resume_from_checkpoint=newest_checkpoint("out"))``. Newer folders that are torn or damaged
    are named on standard error and left as they are. Under torchrun rank 0 looks and tells the others; each must call.

    Args:
        directory: ``output_dir`` of the ``TrainingArguments``; it need not exist yet.

    Raises:
        StorageError: The disk refuses to list the folder.
        GaveUpWaitingError: Rank 0 did not tell in ten minutes.
    """
    ranks = detect()
    name = f"newest-checkpoint-{Path(directory).absolute()}"
    if ranks.rank == 0:
        found = _newest(Path(directory))
        if ranks.world_size > 1:
            with suppress(InvalidCallError):  # several hosts before there is a process group: each looks for itself
                meet(ranks, name, found)
        return found
    try:
        told = meet(ranks, name, timeout=_PATIENCE)
    except InvalidCallError:
        return _newest(Path(directory))
    return None if told is None else str(told)


def _newest(directory: Path) -> str | None:
    for folder in _folders(directory):
        try:
            inspect_folder(folder)
        except (CorruptDataError, NotFoundError, StorageError) as error:
            say(f"{folder} is left out: {error.what}", cure="training goes on from the newest whole one")
        else:
            return str(folder)
    return None


def _folders(directory: Path) -> list[Path]:
    """Folders of Trainer, the largest step first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(error, "listing", directory) from error
    found = [(step, directory / name) for name in names if (step := step_of(name)) is not None]
    return [folder for _, folder in sorted(found, reverse=True) if folder.is_dir()]


def inspect_folder(folder: Path) -> FolderContent:
    """Read everything that Trainer wrote into ``folder``, and find it whole.

    Raises:
        NotFoundError: Something that belongs to a save is not there.
        CorruptDataError: A file is torn or damaged.
        StorageError: The disk refuses.
    """
    try:
        return _inspect(folder)
    except FileNotFoundError as error:  # it was removed while we looked
        raise NotFoundError(f"{error.filename} is gone", cure="use another checkpoint") from None
    except OSError as error:
        if isinstance(error, MilepostError):
            raise
        raise storage_error(error, "reading", folder) from error


def _inspect(folder: Path) -> FolderContent:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    state = _state(folder)
    parts = _require_complete(folder, files)
    unproven = [path for name, path in files.items() if name != DIGESTS and not proven(folder, name, path)]
    ranges = [piece for path in unproven for piece in _look_into(path)]
    share_out(ranges, _check_ranges, threads=available_cores())
    size = sum(path.stat().st_size for path in files.values())
    return FolderContent(path=folder, step=state["global_step"], state=state, size=size, parts=parts)


def _state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    if not path.is_file():
        raise NotFoundError(f"{STATE_FILE}, which is written last, is missing", cure="use another checkpoint")
    state = read_json(path)
    step = state.get("global_step") if isinstance(state, dict) else None
    if type(step) is not int or step != (step_of(folder) if step_of(folder) is not None else step):
        raise damaged(path, f"it is of step {step}")
    return dict(state)


def _require_complete(folder: Path, files: dict[str, Path]) -> tuple[str, ...]:
    """Which parts there are, if none is missing."""
    if not any(name in files for name in _ADAPTERS) and not _any(folder, _SHARDED):
        absent = [path.name for path in _weights(folder) if path.name not in files]
        if absent:
            raise NotFoundError(f"{absent[0]}, which the index names, is missing", cure="use another checkpoint")
    arguments = _arguments(folder / _ARGUMENTS)
    if arguments.get("save_only_model") is True:
        return ("model",)
    wanted = [] if _any(folder, ("global_step*", FAST_FILE)) else ["scheduler.pt"]
    if not _any(folder, _OPTIMIZERS):
        wanted.append("optimizer.pt")
    wanted += _rank_files(files, arguments.get("num_processes", 1))
    absent = [name for name in wanted if name not in files]
    if absent:
        raise NotFoundError(f"{', '.join(absent)} is missing", cure="use another checkpoint")
    return ("model", "optimizer", "scheduler", "rng")


def _weights(folder: Path) -> list[Path]:
    try:
        return weight_files(folder)
    except NotFoundError:
        raise NotFoundError("model.safetensors is missing", cure="use another checkpoint") from None


def _rank_files(files: dict[str, Path], world_size: int) -> list[str]:
    """Files with the random numbers of each rank."""
    if FAST_FILE in files:
        return [FAST_RANK_FILE.format(rank) for rank in range(1, world_size)]
    return [f"rng_state_{rank}.pth" for rank in range(world_size)] if world_size > 1 else ["rng_state.pth"]


def _any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _arguments(path: Path) -> dict[str, Any]:
    """``save_only_model`` and ``num_processes`` of the pickled arguments, which are looked through and not loaded."""
    if not path.is_file():
        raise NotFoundError(f"{_ARGUMENTS} is missing", cure="use another checkpoint")
    wanted, found, key = {"save_only_model", "num_processes"}, {}, ""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            for code, argument, _ in pickletools.genops(archive.read(name)):
                if isinstance(argument, str):
                    key = argument
                elif key in wanted and code.name in {"NEWTRUE", "NEWFALSE", "BININT1", "BININT", "BININT2"}:
                    found[key] = code.name == "NEWTRUE" if code.name.startswith("NEW") else argument
                    key = ""
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        StopIteration,
        ValueError,
        KeyError,
        zlib.error,
        EOFError,
    ) as error:
        raise damaged(path, str(error)) from None
    return found


def _look_into(path: Path) -> Iterator[_Range]:
    """Check the frame of a file; what has checksums is yielded, to be read by all cores."""
    if path.suffix == ".safetensors":
        SafetensorsFile([path]).close()
    elif path.suffix == ".milepost":
        with open_checkpoint(path) as file:
            file.verify()
    elif path.suffix == ".json":
        read_json(path)
    elif path.suffix in _TORCH_ENDINGS:
        yield from _entries(path)


def _entries(path: Path) -> Iterator[_Range]:
    with open(path, "rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            if not os.fstat(file.fileno()).st_size or path.suffix != ".bin":
                raise damaged(path, "it is no file that torch wrote")
            return  # a pickle of an old torch has no checksum
        try:
            check_zip(file)
            entries = zipfile.ZipFile(file).infolist()
        except (ZipAnomalyError, zipfile.BadZipFile) as error:
            raise damaged(path, str(error)) from None
        for entry in entries:
            file.seek(entry.header_offset + _LOCAL_HEADER_BYTES - 4)
            lengths = file.read(4)
            ahead = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            start = entry.header_offset + _LOCAL_HEADER_BYTES + ahead
            yield _Range(path=path, start=start, length=entry.file_size, crc=entry.CRC, entry=entry.filename)


def _check_ranges(shares: Iterator[_Range]) -> None:
    for piece in shares:
        crc, left = 0, piece.length
        with open(piece.path, "rb") as file:
            file.seek(piece.start)
            while left and (content := file.read(min(left, _PIECE))):
                crc = zlib.crc32(content, crc)
                left -= len(content)
        if left or crc != piece.crc:
            raise damaged(piece.path, f"its entry {piece.entry!r} does not have the checksum it was written with")
