"""What is a folder of Hugging Face: where are its weights, and what makes ``from_pretrained`` load it?

``config.json`` says how to build the model, ``model.safetensors`` holds its weights, or an index beside several shards
says which tensor is in which. Older ones have ``pytorch_model.bin`` instead.

**Invariant**: a shard is a file of the folder itself; an index that names another place is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from milepost.checkpoint.job import TensorEntry
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from milepost.io.durable import storage_error

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CONFIG_FACT", "folder_content", "huggingface_config", "weight_files"]

#: Name of the fact that :func:`huggingface_config` gives.
CONFIG_FACT = "huggingface_config"

_known: WeakKeyDictionary[Any, tuple[dict[str, Any], str]] = WeakKeyDictionary()
_ADAPTER_PARTS = ("lora_", ".base_layer.", "modules_to_save")
_WRAPPED = ("module", "_orig_mod", "base_model")
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


def folder_content(state: Mapping[str, Any]) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """What a folder for ``from_pretrained`` holds: the model's tensors by name, tied ones once, and texts by filename.

    Args:
        state: The state, with a :class:`TensorEntry` for each tensor.

    Raises:
        InvalidInputError: No config of a transformers model was saved with it, or the model is not the config's.
    """
    texts = state.get("facts", {}).get(CONFIG_FACT)
    model = state.get("model", {})
    if not isinstance(texts, str) or not model:
        raise InvalidInputError(
            "the checkpoint holds no model with the config of transformers",
            cure='save a model that has one, or export with format="safetensors"',
        )
    if any(part in name for name in model for part in _ADAPTER_PARTS):
        raise InvalidInputError(
            "the checkpoint holds a model with adapters, which its config does not describe",
            cure='save model.merge_and_unload(), or export with format="safetensors"',
        )
    weights: dict[str, TensorEntry] = {}
    taken: set[str] = set()
    for name, entry in model.items():
        if isinstance(entry, TensorEntry) and entry.name not in taken:
            weights[name] = entry
            taken.add(entry.name)
    return weights, json.loads(texts)


def huggingface_config(model: nn.Module) -> str | None:
    """What ``from_pretrained`` needs beside the weights of ``model``, or of the model that it wraps, as one JSON text.

    Returns:
        An object with the text of each file by its name, ``config.json`` and perhaps ``generation_config.json``; None
        if the model has no config of transformers.
    """
    owner = _with_config(model)
    if owner is None:
        return None
    settings = dict(vars(owner.config))
    known = _known.get(owner)
    if known is None or known[0] != settings:  # a save must not spend a millisecond on what it said before
        known = _known[owner] = settings, _texts(owner)
    return known[1]


def _texts(owner: Any) -> str:
    config = json.loads(owner.config.to_json_string())
    if not config.get("architectures"):
        config["architectures"] = [type(owner).__name__]
    texts = {"config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"}
    generation = getattr(getattr(owner, "generation_config", None), "to_json_string", None)
    if callable(generation):
        texts["generation_config.json"] = str(generation())
    return json.dumps(texts)


def _with_config(model: Any) -> Any:
    """The model itself or the one it wraps (DDP, torch.compile, PEFT), whichever first has a config."""
    while model is not None and not callable(getattr(getattr(model, "config", None), "to_json_string", None)):
        model = next((getattr(model, name) for name in _WRAPPED if hasattr(model, name)), None)
    if "PeftModel" in [cls.__name__ for cls in type(model).__mro__]:
        return model.get_base_model()  # answers for its config, not for its class
    return model
