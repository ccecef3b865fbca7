"""How is a ``.pt`` file of unknown origin read without running code from it, or filling the memory by it?

With ``torch.load(weights_only=True)`` and never otherwise, whatever goes wrong. Before that a zip is looked at by
:mod:`.zip_check`, and a packed file is unpacked only up to what a packed file of tensors can be.

torch before 2.10 has known holes there (CVE-2025-32434, CVE-2026-24747). Files are read with it all the same: most are
the user's own, and refusing them would send him to ``weights_only=False``. It is said in the notes of the load.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from milepost.checkpoint.zip_check import ZipAnomalyError, check_zip
from milepost.core.errors import CorruptDataError, InvalidInputError
from milepost.io.durable import storage_error
from milepost.io.memory import available_memory

__all__ = ["notes_on_torch", "read_torch_file"]

_ZIP = b"PK\x03\x04"
_SAFE_SINCE = (2, 10)
#: Trained weights shrink by a tenth or two, a state of zeros by a factor of a thousand; that one is small.
_MOST_UNPACKED = 64
_ALWAYS_UNPACKED = 1 << 30
_PIECE = 8 << 20
_DAMAGE = (RuntimeError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, IndexError)


def notes_on_torch(version: str) -> tuple[str, ...]:
    """What to say of reading foreign files with this version of torch."""
    numbers = tuple(int(part) for part in version.partition("+")[0].split(".")[:2] if part.isdigit())
    if numbers >= _SAFE_SINCE:
        return ()
    return (
        f"torch {version} can be attacked by a .pt file of a stranger: use 2.10 or later for files you do not trust",
    )


def read_torch_file(path: Path, *, packed: bool) -> dict[str, Any]:
    """The dict in a ``.pt`` file, tensors on the CPU.

    Args:
        path: The file.
        packed: Whether it is packed by gzip.

    Raises:
        CorruptDataError: It is damaged, or made to deceive.
        InvalidInputError: It holds objects that are neither tensors nor plain values.
        StorageError: The disk refuses.
    """
    import torch

    try:
        with open(path, "rb") as file:
            source = _unpacked(file) if packed else file
            if source.read(len(_ZIP)) == _ZIP:
                check_zip(source)
            source.seek(0)
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidInputError(
            f"{path} holds more than tensors and plain values ({str(error).splitlines()[0]})",
            cure="load it with torch.load(weights_only=False) if you trust it, and save its state_dict",
        ) from None
    except ZipAnomalyError as error:
        raise CorruptDataError(
            f"{path} is no file that torch wrote: {error}", cure="get it anew from its source", kind="zip-anomaly"
        ) from None
    except OSError as error:
        if error.errno not in {None, errno.EINVAL}:  # what torch's and gzip's readers make of a cut file
            raise storage_error(error, "reading", path) from error
        raise _damaged(path, str(error)) from None
    except _DAMAGE as error:
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds a {type(content).__name__}, not a dict of tensors", cure="save a dict")
    return dict(content)


def _unpacked(file: BinaryIO) -> BinaryIO:
    """What is packed in ``file``, in memory.

    Raises:
        ValueError: It unpacks to more than weights can, or than there is room for.
    """
    most = min(max(_ALWAYS_UNPACKED, _MOST_UNPACKED * os.fstat(file.fileno()).st_size), available_memory())
    unpacked = io.BytesIO()
    with gzip.GzipFile(fileobj=file) as stream:
        while piece := stream.read(_PIECE):
            if unpacked.tell() + len(piece) > most:
                raise ValueError(f"it unpacks to more than {most} bytes")
            unpacked.write(piece)
    unpacked.seek(0)
    return cast("BinaryIO", unpacked)


def _damaged(path: Path, what: str) -> CorruptDataError:
    return CorruptDataError(f"{path} is damaged: {what}", cure="use another checkpoint")
