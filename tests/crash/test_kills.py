"""Does milepost keep its promises when its processes are killed, and would the harness notice if it did not?

The harness itself is :mod:`torture`; here runs as much of it as a commit can wait for. Each level is a process of its
own, because it forks, and a test runner has threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torture import operation_log, tracer
from torture.flavours import FLAVOURS

from milepost.io import memory

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.linux,
    pytest.mark.timeout(900),  # each test is a hundred processes; a busy machine takes its time
    pytest.mark.skipif(not memory.available(), reason="no memfd: nothing outlives the training process here"),
]
needs_ptrace = pytest.mark.skipif(not tracer.is_available(), reason="this system does not let us trace a process")
needs_strace = pytest.mark.skipif(
    not (operation_log.is_available() and tracer.is_available()), reason="strace is not here, or may not trace"
)


def torture(*arguments: str) -> str:
    """What the harness printed; fails with it if a promise was broken."""
    environment = {name: value for name, value in os.environ.items() if name != "TORTURE_BUG"}
    done = subprocess.run(
        [sys.executable, "-m", "torture", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_random_kills() -> None:
    assert "| none" in torture("random", "--kills", "60", "--seed", "1")


@needs_ptrace
@pytest.mark.slow
@pytest.mark.parametrize(("operation", "process"), [("log", "trainer"), ("save", "trainer"), ("save", "companion")])
def test_no_system_call_is_the_wrong_one_to_die_in(operation: str, process: str) -> None:
    torture("sweep", "--operation", operation, "--process", process, "--sample", "10", "--seed", "1")


#: The process in which most of a way of saving happens; ``python -m torture sweep`` takes any, and every call.
BUSY = {
    "save": "both",
    "delta": "companion",
    "overlap": "both",
    "spool": "both",
    "retain": "companion",
    "demote": "companion",
    "backup": "companion",
    "prune": "trainer",
}


@needs_ptrace
@pytest.mark.parametrize("flavour", sorted(FLAVOURS))
def test_no_way_of_saving_has_a_wrong_moment_to_die(flavour: str) -> None:
    torture("sweep", "--operation", flavour, "--process", BUSY[flavour], "--sample", "5", "--seed", "2")


@pytest.mark.parametrize("snapshot", ["copy", "overlap"])
def test_what_happens_right_behind_a_save_is_not_in_its_checkpoint(snapshot: str) -> None:
    torture("equality", "--rounds", "30", "--seed", "1", "--snapshot", snapshot)


def test_on_a_bad_disk_the_last_sound_checkpoint_stays_and_nothing_damaged_gets_a_name() -> None:
    torture("disk", "--seed", "1")


def test_retention_leaves_the_checkpoints_of_others_alone() -> None:
    torture("others", "--seed", "1")


@needs_strace
def test_a_file_is_synced_before_it_is_named_and_its_name_before_it_is_spoken_of() -> None:
    torture("order")


def test_a_flipped_bit_is_refused_or_skipped_and_never_taken_for_data() -> None:
    torture("rot", "--flips", "200", "--seed", "1")


@needs_strace
@pytest.mark.slow
def test_each_planted_bug_is_noticed() -> None:
    printed = torture("planted", "--seed", "1", "--only-where-it-must")
    assert printed.count("**noticed**") == 13, printed
