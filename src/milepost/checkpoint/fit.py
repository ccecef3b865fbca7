"""Does a saved state fit the live objects, and how do they differ?

Everything is compared before anything is written, and all differences are counted, the first three of a kind named: who
changed a model wants to see what he changed, not the first of two hundred names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from milepost.core.errors import InvalidInputError

__all__ = ["Fit"]

_NAMED = 3


@dataclass(slots=True, kw_only=True)
class Fit:
    """What was found so far.

    Attributes:
        strict: Whether names and shapes must be the same; else what does not fit is left as it is.
        frozen: Names that may be missing: parameters that were frozen when only trainable ones were saved.
        missing: Live names that were not saved.
        unexpected: Saved names that nothing live has.
        left_out: Frozen names that were not saved.
        shapes: A sentence for each tensor of another shape.
        dtypes: A sentence for each tensor that was saved with another dtype.
        lossy: Names of tensors of which a part was given up when they were saved.
        notes: Other differences worth knowing.
    """

    strict: bool = True
    frozen: Collection[str] = ()
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    lossy: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def names(self, live: Collection[str], saved: Collection[str], shown: Callable[[str], str] = str) -> None:
        """Compare names; ``shown`` gives what each is called in the report."""
        there = set(saved)
        for name in live:
            if name not in there:
                (self.left_out if name in self.frozen else self.missing).append(shown(name))
        here = set(live)
        self.unexpected += (shown(name) for name in saved if name not in here)

    def tensor(self, name: str, live: Tensor, saved: Tensor) -> bool:
        """Compare a tensor with the one saved for it; whether it is to be written.

        Raises:
            InvalidInputError: The live tensor has no memory to write into.
        """
        if live.device.type == "meta":
            raise InvalidInputError(
                f"{name} has no memory (device 'meta')",
                cure="give the module memory first: module.to_empty(device=...)",
            )
        if live.shape != saved.shape:
            self.shapes.append(f"{name} has shape {tuple(live.shape)}, the checkpoint {tuple(saved.shape)}")
            return False
        if live.dtype != saved.dtype:
            self.dtypes.append(f"{name} was saved as {saved.dtype} and became {live.dtype}")
        return True

    def require(self) -> None:
        """Refuse what must not be.

        Raises:
            InvalidInputError: Names or shapes differ, and ``strict`` asks that they do not.
        """
        found = [
            *_listed("missing", self.missing),
            *_listed("unexpected", self.unexpected),
            *_listed("of another shape", self.shapes),
        ]
        if found and self.strict:
            raise InvalidInputError(
                f"model and checkpoint differ: {'; '.join(found)}",
                cure="build the model as it was when it was saved, or load with strict=False",
            )

    def sentences(self) -> tuple[str, ...]:
        """The notes of a load that went well."""
        left_out = [f"{len(self.left_out)} frozen parameters were not saved and stay as they are"]
        return (
            *self.notes,
            *(left_out if self.left_out else ()),
            *_shortened(self.shapes, "have another shape and stay as they are", "of another shape, left as it is: "),
            *_shortened(self.dtypes, "changed their dtype"),
            *_listed("tensors were saved with fewer bits than they had", self.lossy),
        )


def _listed(what: str, names: Sequence[str]) -> list[str]:
    more = ", ..." if len(names) > _NAMED else ""
    return [f"{len(names)} {what} ({', '.join(names[:_NAMED])}{more})"] if names else []


def _shortened(sentences: Sequence[str], what: str, before: str = "") -> list[str]:
    rest = len(sentences) - _NAMED
    return [before + text for text in sentences[:_NAMED]] + ([f"and {rest} more tensors {what}"] if rest > 0 else [])
