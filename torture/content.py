"""What must stand in a store? A function of seed, attempt, step and name, so a checker needs no copy of anything.

Two attempts give different content to the same step, so what belongs to the wrong attempt is told from what is right.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

__all__ = ["METRICS", "STAMP", "metrics_at", "same_metrics", "tensor_at"]

METRICS = ("train/loss", "train/accuracy", "learning_rate", "grad_norm")

#: Buffer of the model that holds seed, attempt and step: a checkpoint says itself what must be in it.
STAMP = "stamp"

_PLACE = struct.Struct("<qqq")
_AWKWARD = (math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308)


def metrics_at(seed: int, attempt: int, step: int) -> dict[str, float]:
    """The metrics of one step; one value in about forty is not finite, or at the edge of float64."""
    place = _PLACE.pack(seed, attempt, step)
    return {name: _number(xxh3_64_intdigest(place, index)) for index, name in enumerate(METRICS)}


def _number(digest: int) -> float:
    choice = digest & 255
    return _AWKWARD[choice] if choice < len(_AWKWARD) else (digest >> 11) * 2.0**-53


def same_metrics(given: dict[str, float], wanted: dict[str, float]) -> bool:
    """Whether both are the same names with the same 64 bits."""
    return given.keys() == wanted.keys() and all(_bits(given[name]) == _bits(wanted[name]) for name in wanted)


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


def tensor_at(seed: int, attempt: int, step: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The float32 tensor ``name`` of one step, in [0, 1).

    Two steps differ in the lowest eight bits of every element: enough to tell them apart, and so little that a
    difference to another checkpoint pays, as it does in a real training.
    """
    digest = xxh3_64_intdigest(name.encode())
    common = np.random.default_rng([seed, digest]).random(shape, dtype=np.float32).view(np.uint32)
    low = np.random.default_rng([seed, attempt, step, digest]).integers(0, 256, shape, dtype=np.uint32)
    return (common & ~np.uint32(255) | low).view(np.float32)
