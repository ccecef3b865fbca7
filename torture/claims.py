"""What did the killed process say it was about to do, and what had been acknowledged to it?

The worker writes a line before and after each call to a pipe; the harness keeps them in its own memory. Nothing of this
passes through the process, the disk or the code under test.

**Invariants**: an intent is written before the call, an acknowledgement after it returned. So what is acknowledged was
promised, and what was never intended cannot be there honestly.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from torture.flavours import FLAVOURS, Flavour, FlavourName

__all__ = ["Attempt", "Claims", "Reporter", "Save"]

#: Seconds after a companion's death in which a replacement may not hold the memory yet; generous, for a busy machine.
_NOBODY_HOLDS_THE_MEMORY = 0.5


class Reporter:
    """The worker's end of the pipe: one line per call, written whole."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def say(self, word: str, *values: object) -> None:
        """Write ``word``, the time and ``values`` as one line."""
        os.write(self._fd, f"{word} {time.monotonic_ns()} {' '.join(map(str, values))}\n".encode())


@dataclass(slots=True)
class Save:
    """One call of ``save_checkpoint``. ``returned``: it came back. ``committed``: its wait came back too."""

    step: int
    filename: str = ""
    returned: bool = False
    committed: bool = False


@dataclass(slots=True)
class Attempt:
    """One stay of the run: what its process said, and what was done to it.

    Attributes:
        number: Ours, from 0; it is in every value that the attempt logs.
        run_id: The run that it began or went on with; empty if it died before that was known.
        resumed_at: First step that it did; None if it died before that was known.
        intended: Steps whose logging was begun, in order.
        acknowledged: Steps whose logging returned, in order, with the time of the acknowledgement.
        saves: Checkpoints whose saving was begun, in order.
        end_intended: The call that ends the run was begun.
        end_acknowledged: It returned.
        trainer_killed_at: Monotonic nanoseconds.
        companion_killed_at: Monotonic nanoseconds, each time.
        gave_up: It was told that a save is given up because two companions died over it; no save that was not committed
            is promised then.
        complaints: What the worker itself found wrong (restored weights that are not those of the checkpoint).
    """

    number: int
    run_id: str = ""
    resumed_at: int | None = None
    intended: list[int] = field(default_factory=list)
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    started: bool = False
    ready: bool = False
    end_intended: bool = False
    end_acknowledged: bool = False
    done: bool = False
    trainer_killed_at: int = 0
    companion_killed_at: list[int] = field(default_factory=list)
    gave_up: bool = False
    complaints: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Take one line of the worker."""
        word, at, *values = line.split(" ", 2)
        text = values[0].strip() if values else ""
        match word:
            case "log":
                self.intended += _steps(text)
            case "logged":
                self.acknowledged += [(step, int(at)) for step in _steps(text)]
            case "save":
                self.saves.append(Save(int(text)))
            case "saved":
                self.saves[-1].filename = text
                self.saves[-1].returned = True
            case "committed":
                for save in self.saves:
                    save.committed |= save.returned
            case "started":
                self.started, self.run_id = True, text
            case "resumed":
                self.resumed_at = int(text)
            case "end":
                self.end_intended = True
            case "ended":
                self.end_acknowledged = True
            case "given-up":
                self.gave_up = True
            case "complaint":
                self.complaints.append(text)
            case _:
                self.ready |= word == "ready"
                self.done |= word == "done"

    @property
    def all_holders_died(self) -> bool:
        """Whether, at some moment, no process was left that held the log's memory and had not made it durable."""
        if not self.trainer_killed_at:
            return False
        earliest = self.trainer_killed_at - int(_NOBODY_HOLDS_THE_MEMORY * 1e9)
        return any(at > earliest for at in self.companion_killed_at)


def _steps(text: str) -> range:
    """One step, or the first and the last of several."""
    first, _, last = text.partition(" ")
    return range(int(first), int(last or first) + 1)


@dataclass(slots=True)
class Claims:
    """All attempts at one store, and what earlier checks have seen.

    Attributes:
        seed: Of all content.
        flavour: How its checkpoints are saved.
        attempts: In order.
        seen: Files of checkpoints that an earlier check found committed and whole, in order.
    """

    seed: int
    flavour: FlavourName = "save"
    attempts: list[Attempt] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    @property
    def promised(self) -> Flavour:
        """What holds of checkpoints that are saved like this."""
        return FLAVOURS[self.flavour]

    def is_kept(self, attempt: Attempt, save: Save) -> bool:
        """Whether this save must have become a checkpoint, whatever has died."""
        survives = (self.promised.survives_all or not attempt.all_holders_died) and not attempt.gave_up
        return save.committed or (save.returned and survives and self.promised.returned_is_kept)

    @property
    def run_id(self) -> str:
        """The one run of the store; empty while none is known."""
        return next((attempt.run_id for attempt in self.attempts if attempt.run_id), "")
