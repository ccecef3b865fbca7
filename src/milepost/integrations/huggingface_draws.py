"""Which random numbers made the batch that is fetched already when Trainer saves?

Trainer's loader is one batch ahead: when step 500 is saved, batch 501 was made, a collator that masks words at random
has drawn for it, and the random numbers of the save stand behind that. Trainer makes the batch again with whatever
numbers there are, so the losses after a resume are others. Here the numbers before each batch are remembered; when the
training goes on they are set for the first one, and those of the save right behind it.

That is exact for batches that this process makes. Workers of a loader have random numbers of their own, and what a data
set draws for itself, before the collator, is not seen.
"""

from __future__ import annotations

from typing import Any

from milepost.checkpoint.rng import capture_rng, restore_rng

__all__ = ["Draws"]


class Draws:
    """A collator that remembers what stood before its last batch.

    Args:
        collate: The one that makes the batches.

    Attributes:
        is_exact: Whether the batch that was ahead was made again with its own random numbers.
    """

    def __init__(self, collate: Any) -> None:
        self._collate = collate
        self._made = 0
        self._used = 0
        self._before: dict[str, Any] | None = None
        self._again: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.is_exact = False

    def __call__(self, samples: Any) -> Any:
        """The batch of these samples."""
        from torch.utils.data import get_worker_info

        if get_worker_info() is not None:
            return self._collate(samples)
        again, self._again = self._again, None
        if again is not None:
            restore_rng(again[0])
        self._before = capture_rng()
        self._made += 1
        batch = self._collate(samples)
        if again is not None:
            restore_rng(again[1])
            self.is_exact = True
        return batch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._collate, name)  # Trainer looks for the tokenizer of its collator

    def used(self, count: int) -> None:
        """So many batches were given to the training."""
        self._used += count

    @property
    def ahead(self) -> dict[str, Any] | None:
        """The random numbers before the one batch that is made and not used; None if there is none, or not just one."""
        return self._before if self._made - self._used == 1 else None

    def make_again(self, before: dict[str, Any], behind: dict[str, Any]) -> None:
        """Make the next batch with the random numbers ``before``, and go on with those ``behind`` it."""
        self._again = before, behind
