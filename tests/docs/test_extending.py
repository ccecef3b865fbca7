"""Does the package that the documentation shows install, follow a training, and keep the contract?"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import milepost
from tests.docs.code_blocks import ROOT

_FILE = re.compile(r"^```\w+ title=(\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

TRAINING = """
import milepost

quiet = dict(tensorboard_dir=None, capture_code=False, capture_console=False)
with milepost.start("csv", trackers=["csv"], resume="must" if {again} else "never", **quiet) as run:
    for step in range({first}, {first} + 2000):
        run.log({{"loss": 1 / (step + 1), "rate": float("nan")}}, step)
    if not {again}:
        run.end(status="stopped")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package, installed as a user would, without a network."""
    package, site = tmp_path_factory.mktemp("milepost-csv"), tmp_path_factory.mktemp("site")
    for name, content in _FILE.findall((ROOT / "docs/extending.md").read_text(encoding="utf-8")):
        (package / name).write_text(content, encoding="utf-8")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    run_python("-m", "pip", "install", *options, "--target", site, package, cwd=package)
    (site / "test_milepost_csv.py").write_bytes((package / "test_milepost_csv.py").read_bytes())
    return site


def run_python(*arguments: str | Path, cwd: Path, site: Path | None = None) -> str:
    path = os.pathsep.join(map(str, filter(None, (site, ROOT / "src"))))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "PYTEST_ADDOPTS": "", "PIP_NO_INPUT": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_csv_file_holds_what_the_log_holds_also_after_a_resume(site: Path, tmp_path: Path) -> None:
    for again, first in ((False, 0), (True, 2000)):
        (tmp_path / "train.py").write_text(TRAINING.format(again=again, first=first))
        run_python("train.py", cwd=tmp_path, site=site)
    (run,) = milepost.open(tmp_path).runs()
    assert (run.status, len(run.attempts)) == ("completed", 2)
    with (run.layout.experiment / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for metric in ("loss", "rate"):
        series = run.series(metric)
        assert [int(step) for _, step, name, _ in rows if name == metric] == list(range(4000)) == list(series.step)
        values = [repr(float(value)) for *_, name, value in rows if name == metric]
        assert values == [repr(float(value)) for value in series.value]


def test_the_page_s_test_of_it_passes(site: Path, tmp_path: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider")
    out = run_python("-m", "pytest", *options, site / "test_milepost_csv.py", cwd=tmp_path, site=site)
    assert re.search(r"\b9 passed\b", out), out


def test_without_the_package_the_name_is_refused_when_a_run_starts(tmp_path: Path) -> None:
    config = milepost.ExperimentConfig(root=str(tmp_path), trackers=("csv",))
    with pytest.raises(milepost.NotFoundError, match="no installed package offers the tracker 'csv'"):
        milepost.start("csv", config=config)
