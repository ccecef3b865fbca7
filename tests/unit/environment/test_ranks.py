from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.core.errors import GaveUpWaitingError, InvalidCallError
from milepost.environment import ranks as subject
from milepost.environment.ranks import Ranks, StopAgreement, detect, meet


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


class TestDetect:
    def test_torchrun_tells_the_place(self) -> None:
        environ = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
        assert detect(environ) == Ranks(rank=3, world_size=4, local_rank=1)

    @pytest.mark.parametrize(
        "environ", [{}, {"RANK": "1"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}]
    )
    def test_without_a_meaningful_place_the_process_is_alone(self, environ: dict[str, str]) -> None:
        assert detect(environ) == Ranks(rank=0, world_size=1, local_rank=0)

    def test_tasks_of_srun_are_ranks_where_they_are_to_meet_and_torchrun_stands_above_srun(self) -> None:
        environ = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "MASTER_ADDR": "node1"}
        assert detect(environ) == Ranks(rank=3, world_size=4, local_rank=1)
        torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        assert detect(environ | torchrun) == Ranks(rank=1, world_size=2, local_rank=0)

    def test_tasks_that_are_not_to_meet_are_trainings_of_their_own_which_the_first_one_says(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        environ = {"SLURM_STEP_NUM_TASKS": "4"}
        assert {detect(environ | {"SLURM_PROCID": str(rank)}) for rank in range(4)} == {Ranks()}
        assert capsys.readouterr().err.count("set MASTER_ADDR") == 1

    def test_torch_is_not_imported(self) -> None:
        code = "import sys; from milepost.environment.ranks import *; detect(); assert 'torch' not in sys.modules"
        subprocess.run(
            [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        )


class TestMeet:
    def test_alone_the_value_comes_back_at_once(self) -> None:
        assert meet(Ranks(), "run", {"id": 1}) == {"id": 1}

    def test_every_rank_gets_what_rank_0_says_and_each_meeting_has_its_own_value(self) -> None:
        leader, other = Ranks(rank=0, world_size=2), Ranks(rank=1, world_size=2)
        assert meet(leader, "each", ("a", 1)) == ["a", 1]
        assert meet(leader, "each", "second") == "second"
        assert meet(other, "each", timeout=0) == ["a", 1]
        assert meet(other, "each", timeout=0) == "second"

    def test_rank_0_waits_for_nobody(self) -> None:
        assert meet(Ranks(rank=0, world_size=1000), "lonely", 1, timeout=0) == 1

    def test_who_waits_in_vain_learns_for_what(self) -> None:
        with pytest.raises(GaveUpWaitingError, match=r"rank 1 waited for rank 0 to tell 'never'.*after 0.02 s"):
            meet(Ranks(rank=1, world_size=2), "never", timeout=0.02)

    def test_a_late_value_is_awaited(self) -> None:
        answers: list[object] = []
        waiting = threading.Thread(target=lambda: answers.append(meet(Ranks(rank=1, world_size=2), "late")))
        waiting.start()
        meet(Ranks(rank=0, world_size=2), "late", 5)
        waiting.join()
        assert answers == [5]

    def test_processes_of_one_launcher_meet_without_a_process_group(self, tmp_path: Path) -> None:
        code = (
            "from milepost.environment.ranks import detect, meet; ranks = detect(); "
            "print(meet(ranks, 'run', {'id': 'a'} if ranks.rank == 0 else None), meet(ranks, 'run', 2))"
        )
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": "2", "TMPDIR": str(tmp_path)}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code], env=environ | {"RANK": rank}, stdout=subprocess.PIPE, text=True
            )
            for rank in ("1", "0")
        ]
        assert [process.communicate()[0] for process in started] == ["{'id': 'a'} 2\n"] * 2


def _agreements(count: int, topic: str) -> list[StopAgreement]:
    return [StopAgreement(Ranks(rank=rank, world_size=count), topic) for rank in range(count)]


def _poll_all(agreements: list[StopAgreement], times: int = 3) -> None:
    for _ in range(times):
        for agreement in agreements:
            agreement.poll()


class TestStopAgreement:
    def test_alone_it_stops_at_once(self) -> None:
        alone = StopAgreement(Ranks())
        assert not alone.decide(1)
        alone.request()
        assert alone.decide(1)
        assert alone.decide(0)

    def test_a_request_on_one_rank_stops_all_at_the_same_step(self) -> None:
        both = _agreements(2, "one")
        for step in range(3):
            assert [agreement.decide(step) for agreement in both] == [False, False]
        both[1].request()
        _poll_all(both)
        stops = {next(step for step in range(3, 10**6) if agreement.decide(step)) for agreement in both}
        assert len(stops) == 1

    def test_who_learns_it_too_late_takes_all_to_a_later_step(self) -> None:
        first, second = _agreements(2, "late")
        first.decide(1)
        first.request()
        first.poll()  # proposes, and knows it in time
        assert first._proposal is not None
        too_early = first._proposal.step
        second.decide(too_early + 10)
        second.poll()
        assert not first.decide(too_early)
        _poll_all([first, second])
        stops = {next(s for s in range(too_early + 11, 10**6) if agreement.decide(s)) for agreement in (first, second)}
        assert len(stops) == 1

    def test_a_rank_that_takes_no_part_is_not_waited_for(self) -> None:
        only = StopAgreement(Ranks(rank=0, world_size=8), "guarded")
        only.decide(4)
        only.request()
        only.poll()
        assert only.decide(10**6)

    def test_a_rank_that_died_is_waited_for_only_so_long_and_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(subject, "_PATIENCE_FOR_ANSWERS", 0.02)
        first, _ = _agreements(2, "died")
        first.request()
        first.poll()
        assert first.decide(10**6)
        assert "although ranks [1] did not answer" in capsys.readouterr().err

    def test_without_rank_0_a_rank_stops_by_itself_in_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(subject, "_PATIENCE_FOR_PROPOSAL", 0.0)
        second = StopAgreement(Ranks(rank=1, world_size=2), "headless")
        assert not second.decide(1)
        second.request()
        second.poll()
        time.sleep(0.001)  # any time at all is more than the patience set above
        assert second.decide(2)

    def test_when_the_place_to_meet_is_gone_each_rank_decides_alone(self, tmp_path: Path) -> None:
        both = _agreements(2, "gone")
        for folder in tmp_path.iterdir():
            folder.rename(tmp_path / "moved")
        both[1].request()
        _poll_all(both)
        assert both[1].decide(1)
        assert not both[0].decide(1)

    def test_slow_steps_are_not_awaited_longer_than_needed(self) -> None:
        pace = subject._Pace()
        assert pace.steps_in(1.0) == 1
        pace.add(7)
        assert pace.steps_in(1.0) == 1

    @pytest.mark.parametrize("attempt", range(8))
    def test_ranks_in_step_agree_however_their_helpers_are_delayed(
        self, attempt: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(subject, "_HORIZON", 0.002)  # so short that proposals do come too late
        count = 3
        together, over = threading.Barrier(count), threading.Event()
        agreements = _agreements(count, f"delayed-{attempt}")
        stopped: dict[int, int] = {}

        def train(rank: int) -> None:
            for step in range(10**6):
                together.wait()  # what an all-reduce does to ranks
                if rank == 1 and step == 20:
                    agreements[rank].request()
                if agreements[rank].decide(step):
                    stopped[rank] = step
                    return

        def help_rank(rank: int) -> None:
            while not over.wait(0.001 * (1 + (rank * 7 + attempt) % 5)):
                agreements[rank].poll()

        helpers = [threading.Thread(target=help_rank, args=(rank,)) for rank in range(count)]
        trainings = [threading.Thread(target=train, args=(rank,), daemon=True) for rank in range(count)]
        for thread in [*helpers, *trainings]:
            thread.start()
        for thread in trainings:
            thread.join(60)
        over.set()
        for thread in helpers:
            thread.join()
        together.abort()
        assert len(stopped) == count
        assert len(set(stopped.values())) == 1


_TRAINING = """
import os, signal, sys, threading, time
import torch, torch.distributed as dist
from milepost.environment.ranks import StopAgreement, detect, meet
dist.init_process_group("gloo")
ranks = detect()
assert (ranks.rank, ranks.world_size) == (int(os.environ["RANK"]), 2), ranks
run = meet(ranks, "run", {"id": "a"} if ranks.rank == 0 else None)
if ranks.rank == 0:
    meet(ranks, "guarded", 1)
stop = StopAgreement(ranks, run["id"])
signal.signal(signal.SIGUSR1, lambda *_: stop.request())
done = threading.Event()
def help_out():
    while not done.wait(0.02):
        stop.poll()
helper = threading.Thread(target=help_out)
helper.start()
one = torch.ones(1)
for step in range(10**6):
    dist.all_reduce(one)
    one /= 2
    if step == 20:
        print("running", flush=True)
    if stop.decide(step):
        break
print("stopped", step, flush=True)
if ranks.rank == 1:
    sys.stdin.readline()  # rank 0, which keeps the store, has gone by now
    stop.poll()
    print("still here", flush=True)
done.set()
helper.join()
dist.destroy_process_group()
"""


@pytest.fixture
def two_ranks() -> Iterator[list[subprocess.Popen[str]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environ = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _TRAINING],
            env=environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.communicate()[1]
    return line


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(two_ranks: list[subprocess.Popen[str]]) -> None:
    pytest.importorskip("torch")
    first, second = two_ranks
    assert [_line(first), _line(second)] == ["running", "running"]
    second.send_signal(signal.SIGUSR1)
    stopped = [_line(first), _line(second)]
    assert stopped[0].startswith("stopped ")
    assert stopped[0] == stopped[1]
    first.communicate()
    assert first.returncode == 0
    assert second.stdin is not None
    second.stdin.write("\n")
    second.stdin.flush()
    assert _line(second) == "still here"


class TestUnderSrun:
    ENVIRON = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "MASTER_ADDR": "localhost"}  # noqa: RUF012

    def test_tasks_meet_also_where_each_has_a_shell_of_its_own(self, tmp_path: Path) -> None:
        code = (
            "from milepost.environment.ranks import detect, meet; ranks = detect(); "
            "print(meet(ranks, 'run', {'id': 'a'} if ranks.rank == 0 else None))"
        )
        environ = os.environ | self.ENVIRON | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
        shell = f'export SLURM_TASK_PID=$$; {sys.executable} -c "$CODE"; exit $?'
        started = [
            subprocess.Popen(
                ["sh", "-c", shell],
                env=environ | {"SLURM_PROCID": rank, "CODE": code},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in ("1", "0")
        ]
        assert [process.communicate(timeout=60)[0] for process in started] == ["{'id': 'a'}\n"] * 2

    def test_tasks_on_several_hosts_need_a_process_group(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (self.ENVIRON | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_NODES": "2"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InvalidCallError, match="several hosts"):
            meet(detect(os.environ), "run", 1)
