"""What is done about it when a rule found something?

Here, beside the training: the run gets its tag, a checkpoint is pinned, the alert is recorded. What only the training
process can do, it is told to do.

**Invariants**: the alert is recorded last, because it says that all else was done. Each action may be done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from milepost.checkpoint.pinning import pin_newest
from milepost.companion.episodes import Finding
from milepost.companion.messages import FromCompanion, RuleFired
from milepost.companion.rulebook import Entry, Respond
from milepost.core.errors import MilepostError
from milepost.core.events import Alerted, CheckpointChanged, Described, Event
from milepost.core.saying import logger
from milepost.runs.layout import RunLayout

__all__ = ["Consequences"]


class Consequences:
    """Does what the rules of one run ask for.

    Args:
        layout: The run.
        record: Appends an event to the companion's own log.
        emit: Takes what the training process should hear; never waits.
    """

    def __init__(
        self, layout: RunLayout, record: Callable[[Event, int | None], object], emit: Callable[[FromCompanion], None]
    ) -> None:
        self._layout = layout
        self._record = record
        self._emit = emit

    def found(self, entry: Entry, finding: Finding, cause: str, tags: Sequence[str], *, tell: bool) -> None:
        """Act on a finding, and record it last.

        What an attempt did that is over must not be held against the one that runs now: ``tell`` is False then.
        """
        rule = entry.rule
        actions = []
        if rule.mark is not None:
            if rule.mark not in tags:
                self._record(Described(fields={"tags": [*tags, rule.mark]}), None)
            actions.append(f"marked {rule.mark!r}")
        if rule.pin:
            actions.append(self.pin(finding.step, str(rule)))
        if tell and entry.calls:
            actions.append("told the training to call its function")
        if tell and rule.stop:
            actions.append("told the training to stop")
        alert = Alerted(
            step=finding.step,
            title=finding.title,
            text=finding.text,
            level=rule.level,
            rule=str(rule),
            actions=actions,
            cause=cause,
        )
        if tell:
            self._emit(RuleFired(rule=entry.number, alert=asdict(alert), metric=finding.metric, value=finding.value))
        self._record(alert, finding.step)

    def pin(self, before: int | None, rule: str) -> str:
        """Pin the newest checkpoint before a step; in words what was done."""
        try:
            info = pin_newest(self._layout.checkpoints, self._layout.experiment_id, before=before)
        except (OSError, MilepostError) as error:
            logger.warning("no checkpoint was pinned for %s: %s", rule, error)
            return f"no checkpoint was pinned ({error})"
        if info is None:
            return "no checkpoint to pin yet"
        changed = CheckpointChanged(step=info.step, action="pinned", filename=info.filename, reason=rule)
        self._record(changed, info.step)
        return f"pinned the checkpoint of step {info.step}"


_: type[Respond] = Consequences
