"""Who is told what, on which thread, and what becomes of those who raise or never return?"""

from __future__ import annotations

import threading
import time

from milepost.core.events import Alerted, Noticed, StatusChanged
from milepost.core.records import CheckpointInfo
from milepost.system.hooks import Hooks

ALERT = Alerted(step=1, title="look")
INFO = CheckpointInfo(filename="c", path="c", experiment_id="e", step=3)  # type: ignore[arg-type]
END = StatusChanged(status="completed")


class Hook:
    def __init__(self) -> None:
        self.heard: list[tuple[object, ...]] = []
        self.threads: list[threading.Thread] = []

    def _hear(self, *what: object) -> None:
        self.heard.append(what)
        self.threads.append(threading.current_thread())

    def run_started(self, run):
        self._hear("started", run)

    def checkpoint_committed(self, run, info):
        self._hear("committed", run, info)

    def alerted(self, run, alert):
        self._hear("alerted", run, alert)

    def run_ended(self, run, end):
        self._hear("ended", run, end)


def life_of(hooks: Hooks) -> None:
    hooks.run_started("the run")
    hooks.checkpoint_committed(INFO)
    hooks.alerted(ALERT)
    hooks.settle(time.monotonic() + 30)
    hooks.run_ended(END)


def test_all_is_told_in_order_and_what_happens_between_start_and_end_on_one_quiet_thread():
    hook, notices = Hook(), list[Noticed]()
    life_of(Hooks([hook], notices.append))
    run = "the run"
    assert hook.heard == [("started", run), ("committed", run, INFO), ("alerted", run, ALERT), ("ended", run, END)]
    here = threading.current_thread()
    assert [thread is here for thread in hook.threads] == [True, False, False, True]
    assert hook.threads[1] is hook.threads[2]
    assert notices == []


def test_no_thread_is_made_for_hooks_that_hear_of_start_and_end_only():
    class Ends:
        def run_ended(self, run, end): ...

    before = threading.active_count()
    hooks = Hooks([Ends()], lambda notice: None)
    hooks.run_started("the run")
    hooks.checkpoint_committed(INFO)
    assert threading.active_count() == before
    hooks.settle(time.monotonic())
    hooks.run_ended(END)


def test_who_raises_is_named_once_per_method_and_the_others_hear_all_the_same():
    class Raises(Hook):
        def _hear(self, *what):
            raise SystemExit("no")

    hook, notices = Hook(), list[Noticed]()
    hooks = Hooks([Raises(), hook], notices.append)
    for _ in range(2):
        life_of(hooks)
        hooks._teller = None  # another life
    assert [one[0] for one in hook.heard] == ["started", "committed", "alerted", "ended"] * 2
    assert [notice.topic for notice in notices] == [
        "Raises.run_started",
        "Raises.checkpoint_committed",
        "Raises.alerted",
        "Raises.run_ended",
    ]


def test_who_never_returns_is_left_behind_at_the_deadline(capsys):
    let_go, ended = threading.Event(), list[object]()

    class Hangs:
        def alerted(self, run, alert):
            let_go.wait()

        def run_ended(self, run, end):
            ended.append(end)

    hooks = Hooks([Hangs()], lambda notice: None)
    hooks.alerted(ALERT)
    hooks.settle(time.monotonic() + 0.05)
    hooks.run_ended(END)
    assert ended == [END]
    assert "a hook has not returned" in capsys.readouterr().err
    let_go.set()
