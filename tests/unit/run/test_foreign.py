"""What does a run know of a training whose framework keeps the checkpoints itself?"""

from __future__ import annotations

from pathlib import Path

import milepost
from milepost.core.records import CheckpointInfo


def info_of(path: Path, step: int, loss: float, *, best: bool = False) -> CheckpointInfo:
    path.touch()
    return CheckpointInfo(
        filename=path.name,
        path=path,
        experiment_id="",
        step=step,
        metrics={"val/loss": loss},
        is_best=best,
        timestamp=float(step),
        format="lightning",
    )


def test_files_of_a_framework_are_listed_by_the_live_run_its_next_attempt_and_readers(tmp_path: Path) -> None:
    one, other = info_of(tmp_path / "a.ckpt", 3, 0.5, best=True), info_of(tmp_path / "b.ckpt", 6, 0.7)
    run = milepost.start("foreign", root=str(tmp_path), tensorboard_dir=None)
    assert isinstance(run, milepost.Run)
    run.record_checkpoint("committed", one)
    run.record_checkpoint("committed", other)
    run.record_checkpoint("verified", other)
    assert [info.step for info in run.checkpoints] == [3, 6]
    assert run.best is not None
    assert run.best.path == tmp_path / "a.ckpt"
    assert "best: step 3 (val/loss 0.5)" in str(run)
    run.end(status="stopped")

    reader = milepost.open(tmp_path)["foreign"]
    assert [(found.step, found.verified) for found in reader.checkpoints] == [(3, False), (6, True)]
    again = milepost.start("foreign", root=str(tmp_path), tensorboard_dir=None, resume=run.id)
    assert isinstance(again, milepost.Run)
    assert [info.step for info in again.checkpoints] == [3, 6]
    again.record_checkpoint("removed", one, reason="by the framework")
    assert [info.step for info in again.checkpoints] == [6]
    again.end()
    assert [found.step for found in milepost.open(tmp_path)["foreign"].checkpoints] == [6]


def test_what_was_logged_after_the_step_where_a_framework_goes_on_is_hidden(tmp_path: Path) -> None:
    run = milepost.start("rewound", root=str(tmp_path), tensorboard_dir=None)
    assert isinstance(run, milepost.Run)
    for step in range(1, 8):
        run.log({"loss": float(step)}, step)
    run.goes_on_after(4)
    run.log({"loss": 50.0}, 5)
    run.end()
    series = milepost.open(tmp_path)["rewound"].series("loss")
    assert dict(zip(series.step.tolist(), series.value.tolist(), strict=True)) == {1: 1, 2: 2, 3: 3, 4: 4, 5: 50}
