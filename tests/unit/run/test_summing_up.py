"""A run that is alive sums up what it logged, up to the last call."""

from __future__ import annotations

import math
from pathlib import Path

from milepost.run import DisabledRun
from tests.contract.training_script import run_script


def test_a_live_run_knows_its_numbers_up_to_the_last_call_and_those_of_earlier_attempts(tmp_path: Path) -> None:
    script = """
        import milepost
        for attempt in (1, 2):
            run = milepost.start("sums", tensorboard_dir=None, capture_code=False, resume_key="k", resume="auto")
            for step in range(100 * attempt, 100 * attempt + 100):
                run.log({"val/loss": 1.0 / step}, step)
            loss = run.summary["val/loss"]
            print(loss.points, loss.last_step, loss.max_step, loss.min == 1.0 / loss.last_step)
            run.end({"val/loss": 0.5}, status="paused")
            print(run.summary["val/loss"] == 0.5)
    """
    out, err, code = run_script(tmp_path, script)
    assert code == 0, err
    assert out.splitlines() == ["100 199 100 True", "True", "200 299 100 True", "True"]


def test_a_run_that_is_switched_off_answers_nan() -> None:
    assert math.isnan(DisabledRun().summary["val/loss"].min)
