"""Which run does a start begin, whoever else starts at the same moment and whatever it is called?"""

from __future__ import annotations

import json
import os
import selectors
import signal
import textwrap
from pathlib import Path

import pytest

import milepost
from milepost.core.names import is_safe_id
from tests.contract.training_script import Script, run_script

START = """
    import os, sys
    import milepost
    hp = {hyperparameters}
    try:
        run = milepost.start("life", hyperparameters=hp, tensorboard_dir=None, capture_code=False, {options})
    except milepost.MilepostError as error:
        print("refused", error.kind, error)
        sys.exit(4)
    print("started", run.id, run.attempt, flush=True)
    run.log({{"loss": float(run.attempt)}}, run.attempt)
    {then}
"""


def script(options: str, *, hyperparameters: str = '{"lr": 1}', then: str = "run.end()") -> str:
    return START.format(hyperparameters=hyperparameters, options=options, then=then)


DIE = "os.kill(os.getpid(), 9)"


def refusal(folder: Path, body: str) -> str:
    out, err, code = run_script(folder, body)
    assert code == 4, (out, err)
    return out


def test_two_processes_that_start_at_the_same_moment_get_two_runs(tmp_path):
    body = "import sys, milepost\nmilepost.start\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    body += textwrap.dedent(script('resume="auto"'))
    scripts = [Script(tmp_path, body, name=f"t{number}.py", stdin=True) for number in range(3)]
    for one in scripts:
        one.wait_for_line("ready")
    for one in scripts:
        one.tell("\n")
    ids = {one.wait_for_line("started")[-1].split()[1] for one in scripts}
    for one in scripts:
        one.finish()
    assert len(ids) == 3
    assert {run.id for run in milepost.open(tmp_path).runs()} == ids
    assert {run.status for run in milepost.open(tmp_path).runs()} == {"completed"}


def test_of_two_that_resume_a_dead_run_one_gets_it_and_the_other_starts_anew_when_that_one_completes(tmp_path):
    body = script('resume="auto"', then="sys.stdin.readline(); run.end()")
    run_script(tmp_path, script('resume="auto"', then=DIE))  # train.py dies
    first, second = (Script(tmp_path, body, stdin=True) for _ in range(2))
    # Whoever is first holds the run; the other says that it waits, and for whom.
    winner, loser, message = first_to_start(first, second)
    assert "is live (" in message
    winner.tell("\n")
    got = loser.wait_for_line("started")[-1].split()
    loser.tell("\n")
    loser.finish()
    assert winner.started[2] == "2"
    assert got[2] == "1"
    assert got[1] != winner.started[1]
    runs = {run.id: run for run in milepost.open(tmp_path).runs()}
    assert [len(runs[name].attempts) for name in (winner.started[1], got[1])] == [2, 1]
    assert {run.status for run in runs.values()} == {"completed"}


def first_to_start(first: Script, second: Script):
    """Both run; one prints ``started`` and the other says on standard error what it waits for."""
    with selectors.DefaultSelector() as selector:
        selector.register(first.process.stdout, selectors.EVENT_READ, (first, second))
        selector.register(second.process.stdout, selectors.EVENT_READ, (second, first))
        ((key, _),) = selector.select(60)[:1]
    winner, loser = key.data
    winner.started = winner.wait_for_line("started")[-1].split()
    for line in loser.process.stderr:
        if "waiting up to" in line:
            return winner, loser, line
    raise AssertionError("nobody waits")


def test_a_resumed_run_that_dies_while_another_waits_is_continued_by_it(tmp_path):
    run_script(tmp_path, script('resume="auto"', then=DIE))
    body = script('resume="auto"', then="sys.stdin.readline(); run.end()")
    winner, loser, _ = first_to_start(*(Script(tmp_path, body, stdin=True) for _ in range(2)))
    winner.kill(signal.SIGKILL)
    got = loser.wait_for_line("started")[-1].split()
    loser.tell("\n")
    loser.finish()
    assert got[1:] == [winner.started[1], "3"]
    (run,) = milepost.open(tmp_path).runs()
    assert [attempt.status for attempt in run.attempts] == ["killed", "killed", "completed"]


def test_a_live_run_is_refused_in_the_end_and_its_holder_named(tmp_path):
    body = (
        "import milepost.runs.starting as s\ns._LONGEST_WAIT = 0.2\ns.wait_until_idle.__kwdefaults__['longest'] = 0.2\n"
    )
    live = Script(tmp_path, script('resume="auto"', then="sys.stdin.readline(); run.end()"), stdin=True)
    started = live.wait_for_line("started")[-1].split()
    out = refusal(tmp_path, body + textwrap.dedent(script('resume="auto"')))
    assert out.startswith("refused conflict")
    assert f"the run {started[1]} is live (trainer process {live.process.pid}" in out
    out = refusal(tmp_path, body + textwrap.dedent(script(f'resume="{started[1]}"')))
    assert out.startswith("refused conflict")
    live.tell("\n")
    live.finish()


def test_hyperparameters_that_differ_under_a_key_are_named_and_force_goes_on_with_the_new_ones(tmp_path):
    first = '{"lr": 1, "old": [1, 2], "same": {"a": {3, 1}}}'
    second = '{"lr": 2, "new": None, "same": {"a": {1, 3}}}'
    options = 'resume="auto", resume_key="mine"'
    run_script(tmp_path, script(options, hyperparameters=first, then=DIE))
    out = refusal(tmp_path, script(options, hyperparameters=second))
    assert out.startswith("refused hyperparameters-differ")
    assert "lr (1 before, 2 now)" in out
    assert "new ('(absent)' before, None now)" in out
    assert "old ([1, 2] before, '(absent)' now)" in out
    assert "same" not in out.split("hyperparameters:")[1].split(": use")[0]
    assert "force=True" in out
    out, _, code = run_script(tmp_path, script(options + ", force=True", hyperparameters=second, then=DIE))
    assert out.split()[2] == "2"
    out, err, code = run_script(tmp_path, script(options, hyperparameters=second))  # these are its own now
    assert (code, out.split()[2]) == (0, "3"), err
    (run,) = milepost.open(tmp_path).runs()
    assert run.metadata["hyperparameters"] == {"lr": 2, "new": None, "same": {"a": [1, 3]}}
    assert run.status == "completed"


def test_must_and_unknown_ids_are_refused_and_nothing_is_created(tmp_path):
    out = refusal(tmp_path, script('resume="must"'))
    assert out.startswith("refused not-found resume='must'")
    out = refusal(tmp_path, script('resume="life_20200101-000000"'))
    assert out.startswith("refused not-found no run 'life_20200101-000000'")
    for hostile in ("../../etc", "always", "", "con", "-rf"):
        out = refusal(tmp_path, script(f"resume={hostile!r}"))
        assert out.startswith(("refused invalid-input resume is", "refused not-found no run 'always'"))
    assert not milepost.open(tmp_path).runs()
    assert not (tmp_path / "metrics").exists()


def test_a_run_is_continued_by_its_id_even_a_completed_one_and_auto_matches_only_its_own_recipe(tmp_path):
    out, *_ = run_script(tmp_path, script('resume="never"'))
    name = out.split()[1]
    out, *_ = run_script(tmp_path, script(f'resume="{name}"', then=DIE))
    assert out.split()[1:] == [name, "2"]
    out, *_ = run_script(tmp_path, script('resume="auto"', hyperparameters='{"lr": 5}'))
    assert out.split()[1] != name
    out, *_ = run_script(tmp_path, script('resume="must"'))
    assert out.split()[1:] == [name, "3"]


def test_hostile_names_start_runs_that_stay_in_their_folders(tmp_path):
    names = [
        "../../x",
        "a../b",
        "con",
        "nul\0byte",
        "y" * 10_240,
        "\u202egnp",
        "\U0001f600",
        "bad\udcff",
        "-rf",
        "{{x}}",
    ]
    body = f"""
        import milepost
        for name in {names!r}:
            with milepost.start(name, tensorboard_dir=None, capture_console=False, capture_code=False) as run:
                run.log({{"loss": 1.0}}, 0)
        for name in ("", " ", "{{lr}}", "{{0.__class__}}", "z" * 100_000, None, 5):
            try:
                milepost.start(name, tensorboard_dir=None)
                print("accepted", ascii(name)[:20])
            except (milepost.InvalidInputError, milepost.InvalidCallError) as error:
                assert error.cure, error
    """
    out, err, code = run_script(tmp_path, body, MILEPOST_COMPANION="thread")
    assert (code, out) == (0, ""), err
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "experiments", "logs", "metrics", "train.py"] or sorted(
        os.listdir(tmp_path)
    ) == ["experiments", "logs", "metrics", "train.py"]
    runs = milepost.open(tmp_path).runs()
    assert len(runs) == len(names)
    assert all(is_safe_id(run.id) and run.status == "completed" for run in runs)
    expected = [name.replace("{{", "{").replace("}}", "}").encode(errors="replace").decode() for name in names]
    assert sorted(run.name.encode(errors="replace").decode() for run in runs) == sorted(expected)
    assert sorted(os.listdir(tmp_path / "experiments")) == sorted(os.listdir(tmp_path / "metrics"))


def test_descriptions_larger_than_a_record_are_kept_whole_and_what_is_too_large_creates_nothing(tmp_path):
    body = """
        import milepost
        big = {"text": "word " * 8000}
        with milepost.start("big", hyperparameters=big, model_config=big, dataset_info=big, description="word " * 8000,
                            tensorboard_dir=None, capture_code=False) as run:
            pass
        for wrong in ({"hyperparameters": {"a": "x" * 60_000}}, {"tags": ["x" * 60_000]}, {"model_config": "text"},
                      {"tags": "abc"}, {"tags": 5}, {"tags": [""]}, {"group": 5}, {"description": None},
                      {"hyperparameters": [1]}, {"config": milepost.ExperimentConfig(), "strict": True}):
            try:
                milepost.start("wrong", **wrong)
                print("accepted", list(wrong))
            except (milepost.InvalidInputError, milepost.InvalidCallError) as error:
                assert error.cure, error
    """
    out, err, code = run_script(tmp_path, body)
    assert (code, out) == (0, ""), err
    (run,) = milepost.open(tmp_path).runs()
    assert run.metadata["dataset_info"] == {"text": "word " * 8000}
    (tmp_path / "experiments" / run.id / "metadata.json").unlink()
    assert run.refresh().metadata["model_config"] == {"text": "word " * 8000}  # the log alone knows it
    assert json.dumps(run.metadata["description"]).count("word") == 8000


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"start_time": "x", "tags": 5}'])
def test_a_neighbour_whose_metadata_is_damaged_hinders_no_start(tmp_path, damage):
    neighbour = tmp_path / "experiments" / "old_20200101-000000"
    neighbour.mkdir(parents=True)
    (neighbour / "metadata.json").write_text(damage)
    (tmp_path / "experiments" / "stray.txt").touch()
    out, err, code = run_script(tmp_path, script('resume="auto"'), MILEPOST_COMPANION="thread")
    assert code == 0, err
    assert out.startswith("started life_")


def test_where_no_companion_can_be_started_threads_do_its_work_and_the_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "no-program").write_bytes(b"not for this machine")
    (tmp_path / "no-program").chmod(0o755)
    body = """
        import sys
        import torch
        import milepost
        sys.executable = "./no-program"
        run = milepost.start("life", tensorboard_dir=None, capture_code=False)
        model = torch.nn.Linear(3, 3)
        run.log({"loss": 0.5}, 1)
        run.save_checkpoint(model, step=1)
        run.end()
    """
    _, err, exit_code = run_script(tmp_path, body)
    assert exit_code == 0, err
    assert err.count("no companion process can be started") == 1
    (found,) = milepost.open(tmp_path).runs()
    assert found.status == "completed"
    assert [info.step for info in found.checkpoints] == [1]
    assert any("no companion process" in notice.message for notice in found.notices)
