"""Under which tag does a value stand in TensorBoard?

Under its name. But a tag of a run holds values of one kind, and TensorBoard takes the kind of the first for that of
all: where a name was used for two kinds (a number and a histogram called ``weights``), the later one gets its kind
behind its name.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Tags"]


class Tags:
    """The tags of one run, each with the kind of its values."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self._kinds = dict(known)

    def known(self) -> dict[str, str]:
        """The kind of each tag."""
        return dict(self._kinds)

    def tag(self, name: str, kind: str) -> str:
        """The tag for a value of this name and kind."""
        return self.tag_and_first(name, kind)[0]

    def tag_and_first(self, name: str, kind: str) -> tuple[str, bool]:
        """The tag for a value of this name and kind, and whether nothing stood under it before."""
        if name not in self._kinds:
            self._kinds[name] = kind
            return name, True
        if self._kinds[name] == kind:
            return name, False
        return self.tag_and_first(f"{name}/{kind}", kind)
