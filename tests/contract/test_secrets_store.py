"""A whole training that handles forty secrets carelessly: none of them is anywhere in what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.contract.test_secrets_canary import CANARIES, _git, _leaks, _settings_file
from tests.contract.training_script import SOURCE

# Secrets come from a file outside the store, as a careless script would read its settings.
_TRAINING = """
    import json, os, sys
    import milepost
    secrets = json.load(open(sys.argv[1]))
    run = milepost.start("careless", hyperparameters={"lr": 0.1, **secrets}, dataset_info={"login": secrets},
                         description=" ".join(f"{k}={v}" for k, v in secrets.items()), wandb_project=None)
    for name, value in secrets.items():
        print(f"{name}={value}")
        print("401 for", f"https://{value}@example.org/x", file=sys.stderr)
        run.log({"loss": 0.5})
    run.log_text("config", json.dumps(secrets))
    run.log_text("long", json.dumps(secrets) * 60)
    run.note(json.dumps(secrets))
    raise ConnectionError(json.dumps(secrets))
"""


def test_no_secret_is_anywhere_in_what_a_careless_training_leaves_behind(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    secrets = {canary.name: canary.value for canary in CANARIES}
    outside = tmp_path / "secrets.json"
    outside.write_text(json.dumps(secrets))
    (work / "train.py").write_text("\n".join(line[4:] for line in _TRAINING.splitlines()))
    (work / "settings.cfg").write_text("LEARNING_RATE=0.1\n")
    _git(work, "init", "-q")
    _git(work, "add", ".")
    _git(work, "commit", "-q", "-m", "first")
    _git(work, "remote", "add", "origin", f"https://{CANARIES[2].value}:x-oauth-basic@example.org/a.git")
    (work / "settings.cfg").write_text(_settings_file())
    arguments = [part for name, value in secrets.items() for part in (f"--{name.lower()}", value)]
    environment = secrets | {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(SOURCE)}
    environment |= {f"SLURM_{name}": value for name, value in secrets.items()}
    store = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "train.py", str(outside), *arguments],
        cwd=work,
        env=environment | {"MILEPOST_ROOT": str(store)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "ConnectionError" in done.stderr
    files = [path for path in store.rglob("*") if path.is_file()]
    kinds = {path.name for path in files} | {path.suffix for path in files}
    assert {"metadata.json", "experiment.log", "summary.json", "changes.patch", ".mlog", ".log", ".txt"} <= kinds
    assert "careless" in (next(store.glob("experiments/*/metadata.json"))).read_text()
    for path in files:
        content = path.read_bytes().decode("utf-8", "replace")
        assert _leaks(content) == [], path
