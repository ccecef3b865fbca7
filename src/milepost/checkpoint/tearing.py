"""Did memory change between the call of a save and the end of its copy?

torch counts changes of a tensor, but not all: fused optimizers, ``.data``, NumPy and C++ write without being counted.
So some numbers of each tensor are remembered at the call and looked for in the copy. Comparing the memory with the copy
afterwards would miss just the harmful case, a change before the copy.

What remains undetected: a write that torch does not count and that touches none of the 64 numbers, such as one row
through ``.data``.
"""

# ruff: noqa: SLF001 - torch has no other name for the count of a tensor's changes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["Watched", "watch"]

_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Memory that is copied later than the call, and what it was at the call.

    Attributes:
        names: What the tensors are called.
        sources: The live memory, one-dimensional, as whole numbers.
        places: Where it is copied to.
        marks: Count of changes, address and bytes of the storage of each, at the call.
        samples: Numbers of all of them, at the call.
    """

    names: Sequence[str]
    sources: Sequence[Tensor]
    places: Sequence[Tensor]
    marks: Sequence[tuple[int, int, int]]
    samples: Tensor

    def marked(self) -> str:
        """Name of a tensor that torch knows to have changed, or that lies elsewhere; empty if there is none."""
        now = map(_mark, self.sources)
        return next((name for name, mark, was in zip(self.names, now, self.marks, strict=True) if mark != was), "")

    def torn(self) -> str:
        """Name of a tensor whose copy may not be what it was at the call; empty if there is none."""
        return self.marked() or self._unlike(self.places)

    def moved(self) -> str:
        """Name of a tensor that is no longer what it was at the call, as far as samples show."""
        return self.marked() or self._unlike(self.sources)

    def differs(self) -> str:
        """Name of a tensor that is not, to the bit, what was copied; empty if there is none."""
        pairs = zip(self.names, self.sources, self.places, strict=True)
        return self.marked() or next((name for name, source, place in pairs if not torch.equal(source, place)), "")

    def _unlike(self, tensors: Sequence[Tensor]) -> str:
        different = (_sampled(tensors) != self.samples).nonzero()
        if not len(different):
            return ""
        ends = accumulate(min(_SAMPLES, source.numel()) for source in self.sources)
        return next(name for name, end in zip(self.names, ends, strict=True) if int(different[0]) < end)


def watch(names: Sequence[str], sources: Sequence[Tensor], places: Sequence[Tensor]) -> Watched:
    """Remember what ``sources`` are now.

    Args:
        names: What to call each.
        sources: Live memory, one-dimensional, contiguous, whole numbers.
        places: Memory of the same shapes and dtypes that it will be copied to.
    """
    marks = [_mark(source) for source in sources]
    return Watched(names=names, sources=sources, places=places, marks=marks, samples=_sampled(sources))


def _mark(source: Tensor) -> tuple[int, int, int]:
    return source._version, source.data_ptr(), source.untyped_storage().nbytes()


def _sampled(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([_spread(tensor) for tensor in tensors])


def _spread(tensor: Tensor) -> Tensor:
    length = tensor.numel()
    step = max(1, length // _SAMPLES)
    return tensor.as_strided((min(_SAMPLES, length),), (step,), int(tensor.storage_offset()) + step // 2)
