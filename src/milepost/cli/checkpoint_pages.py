"""How do the contents of checkpoints, their differences and the decisions about them look as text?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from milepost.cli.output import Cell, print_line, print_table
from milepost.cli.words import count, number, size

if TYPE_CHECKING:
    from milepost.checkpoint.diff import TensorDifference
    from milepost.cli.checkpoint_views import ContentView, DecisionView, PartView, VerifyView

__all__ = ["print_content", "print_decisions", "print_differences", "print_verified"]

_STYLES = {"added": "green", "removed": "red", "shape": "yellow", "dtype": "yellow"}


def print_content(view: ContentView) -> None:
    """The page of one checkpoint."""
    epoch = f", epoch {number(view.epoch)}" if view.epoch is not None else ""
    print_line((view.filename, "bold"), f"step {count(view.step)}{epoch}, {view.experiment_id or 'of no run'}")
    print_line(f"{size(view.size)} on disk for {size(view.state_bytes)} of state, {_saved(view)}")
    for note in _notes(view):
        print_line(note)
    _print_parts("PART", view.parts)
    _print_parts("DTYPE", view.dtypes)
    total = sum(view.encodings.values()) or 1
    rows: list[list[Cell]] = [[way, size(n), f"{100 * n / total:.0f} %"] for way, n in view.encodings.items()]
    _print_under("STORED", ["STORED", "BYTES", "SHARE"], rows, ["BYTES", "SHARE"])
    _print_under("METRIC", ["METRIC", "VALUE"], [[name, _value(value)] for name, value in view.metrics.items()], [])
    _print_under("WRITER", ["WRITER", "VERSION"], [[name, str(text)] for name, text in view.writer.items()], [])
    tensors: list[list[Cell]] = [
        [t.name, t.dtype + (f" (was {t.original})" if t.original else ""), _shape(t.shape), size(t.nbytes)]
        for t in view.tensors
    ]
    _print_under("TENSOR", ["TENSOR", "DTYPE", "SHAPE", "BYTES"], tensors, ["BYTES"])


def _saved(view: ContentView) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(view.time))
    return f"saved {when}, stall {view.stall_ms:.0f} ms ({view.wait_ms:.0f} ms of it waiting for the save before)"


def _notes(view: ContentView) -> list[str]:
    notes = {
        "best": view.is_best,
        "pinned": view.pinned,
        "read back and decoded after its commit": view.verified,
        f"holds differences to {view.base}, and needs it": bool(view.base),
        f"lossy: {view.lossy}": bool(view.lossy),
        "without frozen parameters": view.include == "trainable",
        f"states of other ranks: {', '.join(view.side_files)}": bool(view.side_files),
    }
    return [note for note, holds in notes.items() if holds]


def _value(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"


def _print_parts(heading: str, parts: Sequence[PartView]) -> None:
    rows: list[list[Cell]] = [[part.name, count(part.tensors), size(part.nbytes)] for part in parts]
    _print_under(heading, [heading, "TENSORS", "BYTES"], rows, ["TENSORS", "BYTES"])


def _print_under(whole: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: Sequence[str]) -> None:
    if rows:
        print_line("")
    print_table(headings, rows, numbers=numbers, whole=[whole])


def print_verified(view: VerifyView) -> None:
    """One file: sound, or what is wrong with it."""
    if view.sound:
        print_line(("✓", "green"), view.path, (f"({size(view.size)})", "dim"))
    else:
        print_line(("✗", "red"), view.what or view.path)
        if view.cure:
            print_line(f"  {view.cure}")
    for mended in view.mended:
        print_line(f"  made good from the second copy: {mended}")


def print_differences(found: Sequence[TensorDifference], *, everything: bool) -> None:
    """The tensors that differ, those that differ most first; equal ones as a number."""
    shown = [one for one in found if everything or one.change != "equal"]
    shown.sort(key=lambda one: (one.change == "equal", -(one.relative_l2 if one.relative_l2 is not None else math.inf)))
    rows: list[list[Cell]] = [
        [
            one.name,
            (_what(one), _STYLES.get(one.change, "")),
            "-" if one.changed is None else f"{100 * one.changed:.3g} %",
            number(one.relative_l2),
            number(one.l2),
            number(one.cosine),
            number(one.max_abs),
            count(one.not_finite) if one.not_finite else "-",
        ]
        for one in shown
    ]
    headings = ["TENSOR", "CHANGE", "CHANGED", "REL L2", "L2", "COSINE", "MAX ABS", "NOT FINITE"]
    print_table(headings, rows, numbers=headings[2:], whole=["TENSOR", "CHANGE"])
    equal = sum(one.change == "equal" for one in found)
    print_line(f"tensors that differ: {count(len(found) - equal)}; equal ones: {count(equal)}")


def _what(one: TensorDifference) -> str:
    if one.change == "shape":
        return f"shape {_shape(one.shapes[0])} -> {_shape(one.shapes[1])}"
    if one.change == "dtype":
        return f"dtype {one.dtypes[0]} -> {one.dtypes[1]}"
    return one.change


def print_decisions(decisions: Sequence[DecisionView]) -> None:
    """What stays and what goes, the newest first, and what that frees."""
    rows: list[list[Cell]] = [
        [count(one.step), (one.action, "" if one.action == "keep" else "yellow"), size(one.size), one.reason]
        for one in decisions
    ]
    print_table(["STEP", "DECISION", "SIZE", "REASON"], rows, numbers=["STEP", "SIZE"], whole=["STEP", "DECISION"])
    gone = [one for one in decisions if one.action == "remove"]
    cut = sum(one.action == "keep weights only" for one in decisions)
    print_line(f"{count(len(gone))} to remove, {size(sum(one.size for one in gone))}; {count(cut)} to cut to weights")
    if cut:
        print_line("what max_disk asks for beyond that is decided when the cuts are done")
