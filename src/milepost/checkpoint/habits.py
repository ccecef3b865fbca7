"""What did one writer learn from the saves before, so that the next one is faster?

How each tensor is best stored, what its digest was, and how many bytes a save took. Everything here can be lost without
harm: the next save learns it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from milepost.checkpoint.manifest import StoredTensor
from milepost.checkpoint.regions import Plan, Source

__all__ = ["Habits"]

#: Saves after which a plan is found anew.
_SAVES = 10

#: A plan is found anew if a region takes this much more than the plan promised.
_WORSE = 1.03
_WORSE_SHARE = 0.005

_Key = tuple[str, str, int]


@dataclass(slots=True)
class _Learnt:
    plan: Plan
    left: int = _SAVES


class Habits:
    """What one writer knows of the state it saves again and again. It belongs to one thread.

    Attributes:
        unchanged: Share of the state's bytes whose tensors had the same digest in the save before; None before the
            second save.
        taken: Bytes of the last file; None before the first save.
    """

    def __init__(self) -> None:
        self.unchanged: float | None = None
        self.taken: int | None = None
        self._plans: dict[_Key, _Learnt] = {}
        self._digests: dict[str, int] = {}

    def plan_of(self, source: Source, *, beside: bool) -> Plan | None:
        """How a region was stored last time, if that is still to be relied on.

        Args:
            source: The region.
            beside: Whether it has a base now, so that a plan is needed that knows differences.
        """
        learnt = self._plans.get(_key(source))
        if learnt is None or learnt.left == 0 or (beside and not learnt.plan.beside):
            return None
        return learnt.plan

    def learn(self, sources: Iterable[Source], tensors: Iterable[StoredTensor], taken: int) -> None:
        """Keep what a file that was committed taught.

        Args:
            sources: Its regions. Their plans are kept, but for those that proved to be bad.
            tensors: Those of the state.
            taken: Bytes of the file.
        """
        self.taken = taken
        self._keep_plans(sources)
        self._compare(tensors)

    def _keep_plans(self, sources: Iterable[Source]) -> None:
        plans: dict[_Key, _Learnt] = {}
        for source in sources:
            if source.plan is None or not source.nbytes or _disappointed(source, source.plan):
                continue
            before = self._plans.get(_key(source))
            again = before is not None and before.plan is source.plan
            plans[_key(source)] = _Learnt(source.plan, before.left - 1) if again and before else _Learnt(source.plan)
        self._plans = plans

    def _compare(self, tensors: Iterable[StoredTensor]) -> None:
        digests: dict[str, int] = {}
        same = total = 0
        for tensor in tensors:
            digests[tensor.name] = tensor.digest
            total += tensor.nbytes
            same += tensor.nbytes if self._digests.get(tensor.name) == tensor.digest else 0
        self.unchanged = same / total if self._digests and total else None
        self._digests = digests


def _key(source: Source) -> _Key:
    return source.name, source.dtype, source.nbytes


def _disappointed(source: Source, plan: Plan) -> bool:
    promised = plan.alone_share if source.base is None else plan.beside_share
    stored = sum(block.encoded.stored for block in source.blocks if block is not None)
    return stored > (promised * _WORSE + _WORSE_SHARE) * source.nbytes
