"""What does a training lose when its companion dies, hangs, or both die together?"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import milepost
from milepost.companion.doctor import examine
from tests.contract.training_script import Script, run_script

pytestmark = pytest.mark.linux

HEAD = """
    import os, signal, sys, time
    import milepost
    quiet = dict(tensorboard_dir=None, capture_code=False)

    def until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    run = milepost.start("faults", **quiet)
    companion = run._companion

    def model_of(megabytes):
        import torch
        return torch.nn.Linear(1024, megabytes * 256, bias=False)

    def replaced():
        before = companion.pid
        os.kill(before, signal.SIGKILL)
        until(lambda: companion.pid != before or companion._own_drain is not None)
"""


def only_run(folder: Path):
    (run,) = milepost.open(folder).runs()
    return run


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_checkpoint_whose_companion_was_killed_is_committed_by_the_next_one_once(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    model = model_of(24)
    for step in (1, 2, 3):
        path = run.save_checkpoint(model, step=step)
        temporary = path.parent / f".{path.name}.tmp"
        if step == 1:
            until(lambda: temporary.exists() or os.path.exists(str(path)))
        if step == 2:
            until(lambda: os.path.exists(str(path)))
        replaced()
        os.stat(path)
        print(path, flush=True)
        milepost.load(path)
    run.wait()
    run.log({"loss": 1.0}, 3)
    run.end()
    """,
        MILEPOST_MAX_CHECKPOINTS="5",
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert [str(info.path) for info in run.checkpoints] == out.split()
    assert all(info.path.exists() for info in run.checkpoints)
    names = sorted(name for name in os.listdir(tmp_path / "checkpoints") if "checkpoint_" in name)
    assert names == sorted(Path(line).name for line in out.split())
    assert run.notices == []
    assert list(run.series("loss").step) == [3]


def test_a_save_that_kills_its_companion_twice_is_given_up_and_the_next_one_is_written(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    model = model_of(1)
    os.stat(run.save_checkpoint(model, step=1))
    run.wait()
    os.kill(companion.pid, signal.SIGSTOP)
    deadly = run.save_checkpoint(model, step=2)
    for _ in range(2):
        before = companion.pid
        os.kill(before, signal.SIGKILL)
        until(lambda: companion.pid != before)
        os.kill(companion.pid, signal.SIGSTOP)  # before it can have started Python
    os.kill(companion.pid, signal.SIGCONT)
    try:
        open(deadly)
    except milepost.StorageError as error:
        print(error.kind, error.what)
    def shown():
        return [n.topic for n in milepost.open(".").runs()[0].notices]
    until(lambda: shown() == ["unprotected"])
    print(milepost.open(".").runs()[0].notices[0].since_step)
    os.stat(run.save_checkpoint(model, step=3))
    run.wait()
    until(lambda: shown() == [])
    run.end()
    """,
    )
    assert code == 0, err
    assert out.splitlines() == ["companion-died two companion processes died while they wrote it", "2"]
    assert err.count("training is unprotected since step 2") == 1
    assert [info.step for info in only_run(tmp_path).checkpoints] == [1, 3]


def test_companions_that_keep_dying_cost_checkpoints_but_no_metric_and_never_hang(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    model = model_of(1)
    for step in range(6):
        run.log({"loss": float(step)}, step)
        if companion._own_drain is None:
            replaced()
    assert companion._own_drain is not None
    import milepost.companion.client
    milepost.companion.client._TICK = 5.0  # the helper thread sleeps: the end must not count on it
    for step in (6, 7):
        run.log({"loss": float(step)}, step)
        path = run.save_checkpoint(model, step=step)
        try:
            run.wait(30)
        except milepost.StorageError as error:
            print(error.what)
    try:
        open(path)
    except milepost.StorageError as error:
        print(error.what)
    run.end()
    """,
    )
    assert code == 0, err
    assert out.splitlines() == ["no companion process writes the checkpoint: it keeps dying"] * 3
    assert err.count("the companion process keeps dying") == 1
    assert "`milepost doctor` finishes it" in err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.series("loss").step) == list(range(8))
    assert [notice.source for notice in run.notices] == ["companion"]
    examine(milepost.open(tmp_path), lambda _: None)
    assert (tmp_path / "experiments" / run.id / "summary.json").exists()
    assert examine(milepost.open(tmp_path), lambda _: None) == []


def test_a_companion_that_is_stopped_holds_up_no_log_and_one_save_and_goes_on_when_it_may(tmp_path):
    script = Script(
        tmp_path,
        HEAD
        + """
    import threading
    model = model_of(1)
    os.kill(companion.pid, signal.SIGSTOP)
    first = run.save_checkpoint(model, step=1)
    for step in range(5000):
        run.log({"loss": float(step)}, step)
    second = []
    saver = threading.Thread(target=lambda: second.append(run.save_checkpoint(model, step=2)))
    saver.start()
    print("logged", companion.pid, flush=True)
    saver.join(0.2)
    assert not second, "it waits for the one arena"
    os.kill(companion.pid, signal.SIGCONT)
    saver.join(60)
    run.wait()
    assert os.path.exists(first) and os.path.exists(second[0])
    run.end()
    """,
    )
    pid = int(script.wait_for_line("logged")[-1].split()[1])
    _, err = script.finish()
    assert script.exit_code == 0, err
    until(lambda: not Path(f"/proc/{pid}").exists())
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.series("loss").step) == list(range(5000))
    assert [info.step for info in run.checkpoints] == [1, 2]


def test_an_end_beside_a_stopped_companion_takes_as_long_as_it_may_and_is_whole_when_that_goes_on(tmp_path):
    script = Script(
        tmp_path,
        HEAD
        + """
    run.log({"loss": 1.0}, 1)
    print("companion", companion.pid, flush=True)
    os.kill(companion.pid, signal.SIGSTOP)
    run.end({"final": 1.0})
    """,
        MILEPOST_EXIT_TIMEOUT="0.5",
    )
    pid = int(script.wait_for_line("companion")[-1].split()[1])
    _, err = script.finish()
    assert script.exit_code == 0, err
    assert "not finished yet" in err
    os.kill(pid, signal.SIGCONT)
    until(lambda: not only_run(tmp_path).state.live)
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert run.summary == {"final": 1.0}
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert (tmp_path / "experiments" / run.id / "summary.json").exists()


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1])
def test_a_trainer_killed_right_after_its_start_is_never_shown_as_running_for_long(tmp_path, delay):
    script = Script(tmp_path, HEAD + "    run.log({'loss': 1.0}, 0); print('started', flush=True); signal.pause()")
    script.wait_for_line("started")
    time.sleep(delay)
    script.kill()
    until(lambda: not only_run(tmp_path).state.live)
    run = only_run(tmp_path)
    assert run.status == "killed"
    assert run.state.reason == "killed by SIGKILL"
    assert list(run.series("loss").step) == [0]


def both_killed(folder: Path) -> None:
    script = Script(
        folder,
        HEAD
        + """
    for step in range(100):
        run.log({"loss": float(step)}, step)
    position = run._log.position
    until(lambda: companion._durable >= position)
    print("companion", companion.pid, flush=True)
    signal.pause()
    """,
    )
    pid = int(script.wait_for_line("companion")[-1].split()[1])
    os.kill(pid, signal.SIGSTOP)  # so that it sees nothing of the trainer's death
    script.process.send_signal(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    script.finish()


def tree_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of change and content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_doctor_records_what_died_with_its_companion_and_finds_nothing_the_second_time(tmp_path):
    both_killed(tmp_path)
    until(lambda: not only_run(tmp_path).state.live)  # the kernel takes the companion's locks back in its own time
    run = only_run(tmp_path)
    assert (run.status, run.state.live, run.state.source) == ("killed", False, "lock")  # derived at once
    assert list(run.series("loss").step) == list(range(100))
    before = tree_of(tmp_path)
    told = []
    dry = examine(milepost.open(tmp_path), told.append, dry_run=True)
    assert tree_of(tmp_path) == before
    assert dry == told
    assert any("died at step 99" in finding.what for finding in dry)
    assert not any(finding.done for finding in dry)
    found = examine(milepost.open(tmp_path), lambda _: None)
    assert any(finding.done == "recorded as killed" for finding in found)
    run = only_run(tmp_path)
    assert (run.status, run.state.source) == ("killed", "doctor")
    assert (tmp_path / "experiments" / run.id / "summary.json").exists()
    assert not list((tmp_path / "metrics" / run.id).glob("*.lock"))
    after = tree_of(tmp_path)
    assert examine(milepost.open(tmp_path), lambda _: None) == []
    assert tree_of(tmp_path) == after


def test_doctor_leaves_a_live_run_alone(tmp_path):
    script = Script(
        tmp_path, HEAD + "    run.log({'loss': 1.0}, 0); print('started'); sys.stdin.readline()", stdin=True
    )
    script.wait_for_line("started")
    assert examine(milepost.open(tmp_path), lambda _: None) == []
    script.tell("\n")
    script.finish()
    assert only_run(tmp_path).status == "completed"


def test_a_state_that_grows_leaves_no_earlier_arena_behind_in_the_companion(tmp_path):
    pytest.importorskip("torch")
    out, err, code = run_script(
        tmp_path,
        """
        import os
        import milepost, torch
        run = milepost.start("grows", tensorboard_dir=None)
        for step, size in enumerate((300, 900, 1500)):
            run.save_checkpoint(torch.nn.Linear(size, size), step=step)
            run.wait()
        folder = f"/proc/{run._companion.pid}/fd"
        links = [os.readlink(f"{folder}/{number}") for number in os.listdir(folder)]
        print("arenas", sum("milepost-arena" in link for link in links))
        run.end()
        """,
    )
    assert code == 0, err
    assert "arenas 2\n" in out  # the descriptor that was handed over, and the one that its map holds


def test_a_forked_worker_that_outlives_a_killed_trainer_delays_nothing_and_keeps_no_memory(tmp_path):
    pytest.importorskip("torch")
    script = Script(
        tmp_path,
        HEAD
        + """
    model = model_of(4)
    os.stat(run.save_checkpoint(model, step=1))
    worker = os.fork()
    if worker == 0:
        devnull = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(devnull, number)
        signal.pause()
    path = run.save_checkpoint(model, step=2)
    print(worker, companion.pid, flush=True)
    signal.pause()
    """,
    )
    worker, companion = map(int, script.wait_for_line("")[0].split())
    try:
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{worker}/fd")]
        assert not [link for link in links if "milepost-arena" in link]
        assert "milepost-arena" not in Path(f"/proc/{worker}/maps").read_text()
        script.kill()
        until(lambda: not Path(f"/proc/{companion}").exists())
        assert Path(f"/proc/{worker}").exists()
    finally:
        os.kill(worker, signal.SIGKILL)
    run = only_run(tmp_path)
    assert (run.status, [info.step for info in run.checkpoints]) == ("killed", [1, 2])
