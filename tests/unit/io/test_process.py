"""One process is told from every other, its end is known, and a second one starts quietly."""

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from milepost.io import process
from milepost.io.process import (
    can_start_python,
    exit_cause,
    exit_cause_is_known,
    is_alive,
    lower_priority,
    open_pidfd,
    start_python,
    this_process,
)


def outcome(code, arguments=(), **options):
    child = start_python(code, arguments, output=subprocess.PIPE, **options)
    printed, _ = child.communicate()
    return child.returncode, printed.decode()


def test_this_process_is_alive_and_no_other_is_taken_for_it():
    me = this_process()
    assert me.pid == os.getpid()
    assert is_alive(me)
    assert not is_alive(replace(me, start_time=me.start_time + 1))
    assert not is_alive(replace(me, host="another"))
    assert not is_alive(replace(me, boot_id="another"))
    assert not is_alive(replace(me, pid=2**22 + 1))


def test_a_dead_process_is_not_alive_even_before_it_is_collected():
    child = start_python("import sys; sys.stdin.read()", [])
    identity = replace(this_process(), pid=child.pid, start_time=process._start_time(child.pid) or -1.0)
    pidfd = open_pidfd(child.pid)
    select.select([pidfd], [], [])
    assert not is_alive(identity)
    child.wait()
    assert not is_alive(identity)
    os.close(pidfd)


@pytest.mark.linux
@pytest.mark.parametrize("collected", [False, True])
@pytest.mark.parametrize(
    ("code", "exit_code", "signal_name"),
    [("raise SystemExit(3)", 3, ""), ("import os; os.kill(os.getpid(), 9)", None, "SIGKILL"), ("", 0, "")],
)
def test_how_a_process_ended_is_known(code, exit_code, signal_name, collected):
    ours, theirs = os.pipe()
    child = start_python(f"import os; os.read({ours}, 1)\n{code}", [], pass_fds=[ours])
    pidfd = open_pidfd(child.pid)
    os.write(theirs, b"x")
    select.select([pidfd], [], [])
    if collected:
        child.wait()
    if not collected or exit_cause_is_known():
        cause = exit_cause(pidfd, child.pid)
        assert (cause.exit_code, cause.signal) == (exit_code, signal_name)
    child.wait()
    for fd in (ours, theirs, pidfd):
        os.close(fd)


def test_of_a_process_nobody_watched_nothing_is_claimed():
    child = start_python("", [])
    child.wait()
    cause = exit_cause(None, child.pid)
    assert (cause.exit_code, cause.signal) == (None, "")


def test_a_quiet_python_gets_arguments_and_the_callers_packages():
    code, printed = outcome("import sys, json, msgspec, milepost; print(json.dumps(sys.argv[1:]))", ["a b", "ü", ""])
    assert code == 0
    assert json.loads(printed) == ["a b", "ü", ""]


def test_a_module_beside_the_script_cannot_run_in_it(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    for name in ("numpy", "msgspec", "typing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, printed = outcome("import json, msgspec, typing, numpy; print(numpy.__file__)", cwd=tmp_path)
    assert code == 0
    assert str(tmp_path) not in printed


def test_what_the_user_named_in_pythonpath_stays(tmp_path, monkeypatch):
    (tmp_path / "my_tracker.py").write_text("value = 7")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert outcome("import my_tracker; print(my_tracker.value)") == (0, "7\n")


def test_it_has_its_own_session_one_computing_thread_and_no_terminal():
    code, printed = outcome(
        "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['OMP_NUM_THREADS'], repr(sys.stdin.read()))"
    )
    assert (code, printed) == (0, "True 1 ''\n")


def test_it_holds_no_descriptor_but_those_it_is_given():
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, theirs > 0)
    code, printed = outcome(
        f"import os; os.fstat({ours}); print(os.path.exists('/proc/self/fd/{theirs}'))", pass_fds=[ours]
    )
    assert (code, printed) == (0, "False\n")
    os.close(ours)
    os.close(theirs)


@pytest.mark.linux
def test_a_polite_process_steps_back():
    code, printed = outcome(
        "from milepost.io.process import lower_priority; import os; lower_priority(); lower_priority();"
        " print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    assert (code, printed) == (0, "10\n")
    assert callable(lower_priority)


@pytest.mark.linux
def test_a_polite_process_lets_the_disk_and_the_sessions_of_others_go_first():
    if not os.path.exists("/proc/self/autogroup"):
        pytest.skip("this kernel groups no sessions")
    code, printed = outcome(
        "from milepost.io.process import lower_priority; import psutil; lower_priority();"
        " print(psutil.Process().ionice()); print(open('/proc/self/autogroup').read())"
    )
    assert code == 0
    assert "ioclass=<IOPriority.IOPRIO_CLASS_BE: 2>, value=7" in printed
    assert printed.rstrip().endswith("nice 10")


def test_a_frozen_program_has_no_python_to_start(monkeypatch):
    assert can_start_python()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not can_start_python()
    monkeypatch.undo()
    for missing in ("", None, "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", missing)
        assert not can_start_python()


@pytest.mark.linux
def test_a_process_ends_its_container_if_it_is_the_first_there():
    assert process.ends_its_container(1)
    assert not process.ends_its_container(os.getpid()) or os.getppid() == 1
    assert not process.ends_its_container(2**22 + 1)


def test_signals_without_a_name_are_told_by_number():
    assert process._signal_name(signal.SIGTERM) == "SIGTERM"
    assert process._signal_name(40) == "SIG40"
    assert sys.platform
