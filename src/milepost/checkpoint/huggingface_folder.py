"""What is a folder of Hugging Face: where are its weights, and what makes ``from_pretrained`` load it?

``config.json`` says how to build the model, ``model.safetensors`` holds its weights, or an index beside several shards
says which tensor is in which. Older ones have ``pytorch_model.bin`` instead.

**Invariant**: a shard is a file of the folder itself; an index that names another place is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost.core.errors import CorruptDataError, NotFoundError
from milepost.io.durable import storage_error

if TYPE_CHECKING:
    from torch import nn

__all__ = ["huggingface_config", "weight_files"]

_LONGEST_INDEX = 100_000_000
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights.

    Raises:
        NotFoundError: There are none.
        CorruptDataError: The index is damaged, or names a file outside of the folder.
    """
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise NotFoundError(f"no weights in the folder {str(folder)!r}", cure=f"it should hold {_WEIGHTS[0]!r}")
    return [found] if found.suffix != ".json" else _shards(found)


def _shards(index: Path) -> list[Path]:
    try:
        with open(index, "rb") as file:
            names = set(json.loads(file.read(_LONGEST_INDEX))["weight_map"].values())
        beside = [name for name in names if Path(name).name != name or "\\" in name or Path(name).suffix == ".json"]
    except OSError as error:
        raise storage_error(error, "reading", index) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptDataError(f"{index} is damaged: {error}", cure="get it anew from its source") from None
    if beside or not names:
        raise CorruptDataError(
            f"{index} names {min(beside, default='no file')!r:.80}, which is no file of weights in its folder",
            cure="get it anew from its source",
            kind="outside-folder",
        )
    return [index.parent / name for name in sorted(names)]


def huggingface_config(model: nn.Module) -> str | None:
    """The text of ``config.json`` for ``model``, or for the model that it wraps; None if it has no such config."""
    seen: Any = model
    while seen is not None:
        to_json = getattr(getattr(seen, "config", None), "to_json_string", None)
        if callable(to_json):
            return str(to_json())
        seen = next(
            (getattr(seen, name) for name in ("module", "_orig_mod", "base_model") if hasattr(seen, name)), None
        )
    return None
