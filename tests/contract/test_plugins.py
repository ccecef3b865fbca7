"""What of the user's own works in the training process: is it told everything, and does the loop never feel it?"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import Script, run_script

HEAD = """
    import json, os, sys, threading, time
    import milepost
    quiet = dict(tensorboard_dir=None, capture_code=False, capture_console=False, system_metrics_every=None)

    class Diary:
        '''Remembers what it was told, and what it may forget after a failure.'''

        def __init__(self, name="diary"):
            self.name, self.steps, self.safe, self.opened, self.ends, self.threads = name, [], 0, [], [], set()

        def open(self, run, cursor):
            self.opened.append(dict(cursor))
            del self.steps[self.safe:]
            return True

        def write(self, records):
            self.threads.add(threading.current_thread().name)
            self.steps += [r.event.step for r in records if type(r.event).__name__ == "Metrics"]

        def flush(self):
            self.safe = len(self.steps)
            return {"steps": self.safe}

        def close(self, end):
            self.ends.append(end and end.status)
"""


def only_run(folder: Path):
    (run,) = milepost.open(folder).runs()
    return run


@pytest.mark.parametrize("companion", ["process", "thread"])
def test_one_tracker_object_hangs_and_one_raises_and_the_third_has_everything(tmp_path, companion):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    class Hangs(Diary):
        def write(self, records):
            threading.Event().wait()

    class Raises(Diary):
        def write(self, records):
            if len(self.opened) == 1:
                raise RuntimeError("not today")
            super().write(records)

    class Breaks(Diary):
        def open(self, run, cursor):
            raise SystemExit(3)

    good, hangs, raises, breaks = Diary("good"), Hangs("hangs"), Raises("raises"), Breaks("breaks")
    trackers = [good, hangs, raises, breaks]
    with milepost.start("own", trackers=trackers, exit_timeout=3.0, **quiet) as run:
        for step in range(500):
            run.log({"loss": 1.0 / (step + 1)}, step)
        assert len(good.steps) < 500  # a tracker reads the disk in its own time: no step waited for it
    print(json.dumps([good.steps == list(range(500)), good.ends, sorted(good.threads)]))
    print(json.dumps([raises.steps == list(range(500)), raises.ends]))
    """,
        MILEPOST_COMPANION=companion,
    )
    assert code == 0, err
    first, second = map(json.loads, out.splitlines())
    assert first == [True, ["completed"], ["milepost-good"]]
    assert second == [True, [None, "completed"]]
    assert "raises does not take the run (RuntimeError: not today): nothing is lost" in err
    assert "breaks does not take the run (SystemExit: 3)" in err
    assert "hangs has not taken all of the run yet" in err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.metadata["tracker_cpu_seconds"]) == ["good", "hangs", "raises", "breaks"]
    assert run.metadata["settings"]["trackers"] == []


def test_after_a_kill_a_tracker_object_goes_on_from_its_cursor(tmp_path):
    body = (
        HEAD
        + """
    diary = Diary()
    run = milepost.start("own", trackers=[diary], resume="auto", **quiet)
    start = 0 if run.attempt == 1 else 100
    for step in range(start, start + 100):
        run.log({"loss": 1.0}, step)
    if run.attempt == 1:
        while diary.safe < 100:
            time.sleep(0.01)
        time.sleep(0.2)  # the cursor is saved after the flush returned
        print("told", flush=True)
        sys.stdin.readline()
    run.end()
    print(json.dumps([diary.opened, diary.steps[:1], diary.steps[-1:], len(diary.steps)]))
    """
    )
    script = Script(tmp_path, body, stdin=True)
    script.wait_for_line("told")
    script.kill(signal.SIGKILL)
    out, err, code = run_script(tmp_path, body)
    assert code == 0, err
    opened, first, last, count = json.loads(out)
    assert opened == [{"steps": 100}]
    assert (first, last, count) == ([100], [199], 100)


def test_of_two_ranks_only_the_first_has_trackers_and_hooks(tmp_path):
    body = (
        HEAD
        + """
    class Hook:
        def run_started(self, run):
            print("started", flush=True)

    diary = Diary()
    with milepost.start("ranks", trackers=[diary], hooks=[Hook()], **quiet) as run:
        run.log({"loss": 1.0}, 0)
    print(json.dumps(diary.steps))
    """
    )
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [Script(tmp_path, body, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]
    outs = [rank.finish() for rank in ranks]
    assert [out for out, _ in outs] == ["started\n[0]\n", "[]\n"], outs


def test_two_trackers_of_one_name_are_refused_when_the_run_starts(tmp_path):
    out, _, _ = run_script(
        tmp_path,
        HEAD
        + """
    for trackers, more in (([Diary(), Diary()], {}), ([Diary("tensorboard")], {"tensorboard_dir": "runs"})):
        try:
            milepost.start("own", trackers=trackers, **quiet | more)
        except milepost.InvalidInputError as error:
            print(error)
    print(os.path.exists("experiments"))
    """,
    )
    assert out.splitlines() == [
        "two trackers have the name 'diary': give one of them another name",
        "two trackers have the name 'tensorboard': give one of them another name",
        "False",
    ]


@pytest.mark.parametrize("companion", ["process", "thread"])
def test_hooks_hear_of_start_checkpoints_alerts_and_end_in_that_order(tmp_path, companion):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    import torch

    class Hook:
        def __init__(self):
            self.heard, self.threads, self.both_saved = [], [], threading.Event()

        def _hear(self, *what):
            self.heard.append(what)
            self.threads.append(threading.current_thread() is threading.main_thread())
            if len(self.heard) == 3:
                self.both_saved.set()

        def run_started(self, run):
            run.tag("hooked")
            self._hear("started", run.id, run.ended)

        def checkpoint_committed(self, run, info):
            run.wait()  # would never return on a thread that somebody waits for
            run.load_checkpoint(info.path, torch.nn.Linear(2, 2))
            self._hear("committed", info.step, info.path.exists())

        def alerted(self, run, alert):
            self._hear("alerted", alert.title)

        def run_ended(self, run, end):
            summary = json.load(open(f"experiments/{run.id}/summary.json"))
            self._hear("ended", run.ended, end.status, "0.5" in json.dumps(summary))

    class Raises:
        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(name)
            def call(*arguments):
                raise SystemExit(name)
            return call

    model, hook = torch.nn.Linear(2, 2), Hook()
    run = milepost.start("hooked", hooks=[Raises(), hook], **quiet)
    for step in range(2):
        run.log({"loss": 1.0}, step)
        run.save_checkpoint(model, step=step)
    run.wait()
    hook.both_saved.wait(30)
    run.alert("look", "at this")
    run.end({"final": 0.5})
    print(json.dumps([hook.heard, hook.threads]))
    """,
        MILEPOST_COMPANION=companion,
    )
    assert code == 0, err
    heard, threads = json.loads(out)
    assert [one[0] for one in heard] == ["started", "committed", "committed", "alerted", "ended"], err
    assert heard[1:3] == [["committed", 0, True], ["committed", 1, True]]
    assert heard[-1] == ["ended", True, "completed", True]
    assert threads == [True, False, False, False, True]
    for method in ("run_started", "checkpoint_committed", "alerted", "run_ended"):
        assert err.count(f"the hook Raises.{method} raised SystemExit: {method} (said once)") == 1
    run = only_run(tmp_path)
    assert run.metadata["tags"] == ["hooked"]
    recorded = {notice.topic for notice in run.notices if notice.source == "hooks"}
    assert recorded >= {"Raises.run_started", "Raises.checkpoint_committed"}


def test_a_hook_that_never_returns_costs_the_end_its_timeout_and_no_more(tmp_path):
    _, err, code = run_script(
        tmp_path,
        HEAD
        + """
    import torch

    class Hook:
        def checkpoint_committed(self, run, info):
            threading.Event().wait()

    with milepost.start("stuck", hooks=[Hook()], exit_timeout=1.0, **quiet) as run:
        for step in range(3):
            run.save_checkpoint(torch.nn.Linear(2, 2), step=step)
        run.wait()
    """,
    )
    assert code == 0, err
    assert "a hook has not returned; the run ends without it" in err
    assert only_run(tmp_path).status == "completed"
