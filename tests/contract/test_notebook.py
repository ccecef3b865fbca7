"""A run in a notebook, with a real IPython shell: cells end, runs go on."""

from __future__ import annotations

from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import run_script

pytest.importorskip("IPython", reason="IPython is not installed")

SHELL = """
    import os
    os.environ["IPYTHONDIR"] = os.getcwd()
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance(colors="NoColor", history_length=0)
    shell.history_manager.enabled = False
    cell = shell.run_cell
    cell("import milepost")
    cell("quiet = dict(tensorboard_dir=None, capture_code=False)")
"""


def by_name(folder: Path):
    return {run.name: run for run in milepost.open(folder).runs()}


def test_a_cell_run_twice_ends_its_first_run_as_completed_and_says_so_in_a_line(tmp_path):
    out, err, code = run_script(
        tmp_path,
        SHELL
        + """
    for number in (1, 2):
        result = cell(f"run = milepost.start('try{number}', **quiet)\\nrun.log({{'loss': {number}.0}}, {number})")
        result.raise_error()
    cell("assert not run.ended; run.log({'loss': 3.0})").raise_error()
    """,
        MILEPOST_COMPANION="thread",
    )
    assert code == 0, err
    runs = by_name(tmp_path)
    assert (out + err).count("is ended as completed, because this cell starts another run") == 1
    assert {name: run.status for name, run in runs.items()} == {"try1": "completed", "try2": "completed"}
    assert list(runs["try1"].series("loss").step) == [1]
    assert list(runs["try2"].series("loss").step) == [2, 3]


def test_a_busy_system_ends_its_experiment_for_the_next_one(tmp_path):
    _, err, code = run_script(
        tmp_path,
        SHELL
        + """
    cell("config = milepost.ExperimentConfig(**quiet)\\nsystem = milepost.ExperimentTrackingSystem(config)")
    start = "first = system.start_experiment('one')\\nsystem.log_metrics({'loss': 1.0}, 0)"
    cell(start).raise_error()
    cell(start).raise_error()
    cell("system.end_experiment({'final': 1.0})").raise_error()
    """,
        MILEPOST_COMPANION="thread",
    )
    assert code == 0, err
    runs = milepost.open(tmp_path).runs()
    assert [run.status for run in runs] == ["completed", "completed"]
    assert [run.summary for run in runs] == [{"final": 1.0}, {}]


def test_an_exception_in_a_cell_is_an_event_and_an_interrupt_is_nothing_and_the_run_stays_open(tmp_path):
    _, err, code = run_script(
        tmp_path,
        SHELL
        + """
    cell("run = milepost.start('try', **quiet)").raise_error()
    cell("raise ValueError('the cat')")
    cell("raise KeyboardInterrupt")
    cell("this is no python")
    cell("with run:\\n    raise KeyboardInterrupt")
    cell("import sys; sys.exit(3)")
    cell("assert not run.ended; run.log({'loss': 1.0}, 7)").raise_error()
    cell("print('notices', [n.message for n in milepost.open('.')['try'].notices])").raise_error()
    """,
    )
    assert code == 0, err
    run = by_name(tmp_path)["try"]
    assert run.status == "completed"
    assert list(run.series("loss").step) == [7]
    messages = [notice.message for notice in run.notices if notice.source == "notebook"]
    assert "a cell raised ValueError: the cat" in messages
    assert any("SyntaxError" in message for message in messages)
    assert not any("KeyboardInterrupt" in message for message in messages)
    assert err.count("a cell raised ValueError: the cat") == 1


def test_an_exception_inside_a_with_block_ends_that_run_as_failed(tmp_path):
    _, err, code = run_script(
        tmp_path,
        SHELL + "    cell(\"with milepost.start('try', **quiet) as run:\\n    raise ValueError('the cat')\")",
        MILEPOST_COMPANION="thread",
    )
    assert code == 0, err
    run = by_name(tmp_path)["try"]
    assert run.status == "failed"
    assert "ValueError: the cat" in run.state.reason
