"""What is logged to be looked at: handed over in the loop, there after a kill, once, never in the training's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import milepost
from milepost.companion.doctor import examine
from tests.contract.training_script import Script, run_script

pytestmark = pytest.mark.linux

EVERYTHING = """
    import os, sys
    import matplotlib, numpy as np, torch
    from matplotlib.figure import Figure
    from PIL import Image
    import milepost
    run = milepost.start("media", tensorboard_dir=None, capture_code=False, system_metrics_every=None)
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2, 3])
    run.log({"loss": 1.0}, 7)
    print(run._companion.pid if hasattr(run._companion, "pid") else 0, flush=True)
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    run.log_image("seen/array", pixels, caption="password=hunter2hunter2")
    run.log_image("seen/tensor", torch.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5))
    run.log_image("seen/list", [pixels, Image.fromarray(pixels).convert("P"), pixels[:, :, 0] > 9])
    run.log_histogram("weights", torch.tensor([0.0, 1.0, 2.0, float("nan"), float("inf")]), bins=2)
    run.log_table("answers", ["text", "score"], [["yes", 0.5], [None, float("nan")]])
    run.log_figure("curve", figure)
    run.log_audio("tone", np.array([0.0, 0.5, -1.0]), 8000)
    run.log_html("page", "<b>bold</b>")
    run.log_model_graph(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    run.log_image("../../../evil/..\\\\\\0name", pixels)
    run.log_text("long", "x" * 60_000)
"""
NAMES = ["seen/array", "seen/tensor", *["seen/list"] * 3, "weights", "answers", "curve", "tone", "page", "model"]
NAMES += ["../../../evil/..\\\0name", "long"]


def check_everything(folder: Path) -> None:
    """All of it is there, once each, and opens."""
    (run,) = milepost.open(folder).runs()
    items = run.media
    assert sorted(item.name for item in items) == sorted(NAMES)
    media = run.layout.media
    for item in items:
        assert item.step == 7
        assert item.path.parent == media
        assert item.path.stat().st_size == item.size
    of = {item.name: item for item in items}
    assert os.listdir(media / ".staged") == []
    assert {item.path.name for item in items} | {".staged"} == set(os.listdir(media))
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(np.asarray(Image.open(of["seen/array"].path)), pixels)
    assert of["seen/array"].caption == "password=[redacted]"
    tensor = np.asarray(Image.open(of["seen/tensor"].path))
    assert (tensor.shape, tensor.min(), tensor.max()) == ((4, 5, 3), 0, 255)
    assert sorted(item.facts["index"] for item in items if item.name == "seen/list") == [0, 1, 2]
    histogram = json.loads(of["weights"].path.read_text())
    assert histogram["counts"] == [1, 2]
    assert (histogram["count"], histogram["nan"], histogram["positive_infinity"]) == (3, 1, 1)
    table = json.loads(of["answers"].path.read_text())
    assert table == {"columns": ["text", "score"], "rows": [["yes", 0.5], [None, "NaN"]]}
    with Image.open(of["curve"].path) as curve:
        assert curve.size == (100, 50)
    with wave.open(str(of["tone"].path)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (8000, 1, 3)
    assert of["page"].path.read_text() == "<b>bold</b>"
    assert (of["model"].form, of["model"].media_type) == ("graph", "application/x-tensorboard-graph")
    assert of["long"].path.read_text() == "x" * 60_000


@pytest.mark.parametrize("companion", ["process", "thread"])
def test_everything_that_was_logged_is_there_after_an_end(tmp_path, companion):
    _, err, code = run_script(
        tmp_path, EVERYTHING + "    assert run.flush()\n    run.end()\n", MILEPOST_COMPANION=companion
    )
    assert code == 0, err
    assert "media" not in err.replace("waiting for media", "")  # a slow machine may say that it waits
    check_everything(tmp_path)


def test_flush_returns_when_all_of_it_can_be_opened(tmp_path):
    script = Script(
        tmp_path, EVERYTHING + "    assert run.flush()\n    print('flushed', flush=True)\n    input()\n", stdin=True
    )
    script.wait_for_line("flushed")
    check_everything(tmp_path)
    script.kill()


@pytest.mark.slow
@pytest.mark.parametrize("also_the_companion", [False, True])
def test_everything_that_was_logged_is_there_after_a_kill(tmp_path, also_the_companion):
    script = Script(tmp_path, EVERYTHING + "    print('logged', flush=True)\n    input()\n", stdin=True)
    companion = int(script.wait_for_line("")[0])
    if also_the_companion:
        os.kill(companion, signal.SIGSTOP)  # nothing is encoded meanwhile
    script.wait_for_line("logged")
    if also_the_companion:
        os.kill(script.process.pid, signal.SIGSTOP)  # or it would start another one
        os.kill(companion, signal.SIGKILL)
    script.kill()
    until(lambda: not milepost.open(tmp_path).runs()[0].state.live)
    if also_the_companion:
        dry = examine(milepost.open(tmp_path), lambda _: None, dry_run=True)
        assert any(finding.what == "13 logged media not encoded" for finding in dry)
        done = examine(milepost.open(tmp_path), lambda _: None)
        assert any(finding.done == "encoded" for finding in done)
    else:
        until(lambda: not milepost.open(tmp_path).runs()[0].state.finishing)
    check_everything(tmp_path)
    assert examine(milepost.open(tmp_path), lambda _: None) == []
    check_everything(tmp_path)


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_said_once_and_the_training_goes_on(tmp_path, small_disk):
    out, err, code = run_script(
        tmp_path,
        """
        import os
        import milepost, numpy as np
        run = milepost.start("full", experiment_dir="disk/experiments", tensorboard_dir=None, capture_code=False)
        noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3)).astype(np.uint8)
        for step in range(20):
            run.log({"loss": 1.0}, step)
            run.log_image("noise", noise)
        print("through")
        for name in os.listdir(f"disk/experiments/{run.id}/media/.staged"):
            os.unlink(f"disk/experiments/{run.id}/media/.staged/{name}")
        run.end()
        """,
    )
    assert code == 0, err
    assert out == "through\n"
    assert err.count("could not be kept") == 1
    assert "Traceback" not in err
    (run,) = milepost.open(small_disk.parent / "disk").runs() or milepost.open(tmp_path).runs()
    assert run.status == "completed"


def test_the_training_never_imports_pillow_and_says_at_once_if_it_is_absent(tmp_path):
    _, err, code = run_script(
        tmp_path,
        """
        import sys
        import milepost, numpy as np
        with milepost.start("late", tensorboard_dir=None, capture_code=False) as run:
            run.log_image("a", np.zeros((4, 4)))
            assert run.flush() and "PIL" not in sys.modules
        """,
    )
    assert code == 0, err
    _, err, code = run_script(
        tmp_path,
        """
        import sys
        import milepost, numpy as np
        sys.modules["PIL"] = None
        with milepost.start("absent", tensorboard_dir=None, capture_code=False) as run:
            run.log_image("a", np.zeros((4, 4)))
        """,
    )
    assert code == 1
    assert 'MissingDependencyError: log_image needs Pillow: pip install "milepost[media]"' in err


def test_calls_that_cannot_be_meant_raise_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILEPOST_COMPANION", "thread")
    quiet = {"tensorboard_dir": None, "capture_console": False, "capture_code": False}
    with milepost.start("wrong", **quiet) as run:
        calls = [
            lambda: run.log_image("a", np.zeros((2, 2), np.int64)),
            lambda: run.log_image("a", "picture.png"),
            lambda: run.log_image(5, np.zeros((2, 2))),
            lambda: run.log_image("a", np.zeros((2, 2)), step="x"),
            lambda: run.log_histogram("a", ["x"]),
            lambda: run.log_histogram("a", [1], bins=2.5),
            lambda: run.log_table("a", "columns", [[1]]),
            lambda: run.log_table("a", 5),
            lambda: run.log_figure("a", object()),
            lambda: run.log_audio("a", np.zeros(3, np.int64), 8000),
            lambda: run.log_audio("a", np.zeros(3), 8000.5),
            lambda: run.log_html("a", b"<b>"),
            lambda: run.log_model_graph(object(), None),
        ]
        for call in calls:
            with pytest.raises(milepost.InvalidCallError) as raised:
                call()
            assert raised.value.cure
        values = [
            lambda: run.log_image("a", np.zeros((2, 2, 2))),
            lambda: run.log_image("a", np.zeros((8, 3, 4, 4))),
            lambda: run.log_image("a", np.zeros((0, 2))),
            lambda: run.log_image("a", []),
            lambda: run.log_histogram("a", [1], bins=0),
            lambda: run.log_table("a", ["x", "y"], [[1]]),
            lambda: run.log_table("a", {"x": [1], "y": []}),
            lambda: run.log_audio("a", np.zeros((20, 30)), 8000),
            lambda: run.log_audio("a", np.zeros(3), 0),
            lambda: run.log_image("a", np.zeros((2, 2)), caption="x" * 100_000),
            lambda: run.flush(timeout=-1),
        ]
        for call in values:
            with pytest.raises(milepost.InvalidInputError) as raised:
                call()
            assert raised.value.cure
    assert milepost.open(tmp_path).runs()[0].media == []
