"""Settings: the mission's nine first, checked when made, loaded with a clear order of precedence."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from milepost.core.config import ExperimentConfig, bytes_of, is_disabled
from milepost.core.errors import InvalidInputError, NotFoundError, StorageError

MISSION = {
    "experiment_dir": "./experiments",
    "checkpoint_dir": "./checkpoints",
    "logs_dir": "./logs",
    "metrics_dir": "./metrics",
    "tensorboard_dir": "./runs",
    "wandb_project": None,
    "save_frequency": 1000,
    "max_checkpoints": 5,
    "compression": True,
}
FOLDERS = ("experiment_dir", "checkpoint_dir", "logs_dir", "metrics_dir", "tensorboard_dir")


def test_the_missions_nine_fields_come_first_in_order_and_with_its_defaults():
    fields = dataclasses.fields(ExperimentConfig)[: len(MISSION)]
    assert {field.name: field.default for field in fields} == MISSION
    assert [field.name for field in fields] == list(MISSION)


def test_the_missions_fields_can_be_given_by_position(tmp_path):
    config = ExperimentConfig("e", "c", "l", "m", "t", "p", 7, 3, False)  # noqa: FBT003 - as the mission allows
    assert (config.wandb_project, config.save_frequency, config.max_checkpoints, config.compression) == (
        "p",
        7,
        3,
        False,
    )
    assert config.tensorboard_dir == os.path.abspath("t")


def test_a_configuration_is_frozen_and_equal_to_its_like():
    config = ExperimentConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.save_frequency = 1
    assert config == ExperimentConfig()
    assert dataclasses.replace(config, save_frequency=2).save_frequency == 2


def test_paths_are_absolute_from_the_start_so_that_chdir_moves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(logs_dir="../l")
    monkeypatch.chdir("/")
    assert config.experiment_dir == str(tmp_path / "experiments")
    assert config.logs_dir == str(tmp_path.parent / "l")


def test_root_moves_relative_folders_and_leaves_absolute_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(root="store", checkpoint_dir="/scratch/c", logs_dir="~/l")
    assert config.root == str(tmp_path / "store")
    assert config.checkpoint_dir == "/scratch/c"
    assert config.logs_dir == str(Path.home() / "l")
    for name in ("experiment_dir", "metrics_dir", "tensorboard_dir"):
        assert getattr(config, name) == os.path.normpath(tmp_path / "store" / MISSION[name])
    assert ExperimentConfig(root="s", tensorboard_dir=None).tensorboard_dir is None


WRONG = [
    *[(name, value) for name in ("save_frequency", "max_checkpoints") for value in (0, -1, 1.5, "5", None, True)],
    *[(name, v) for name in ("compression", "strict", "capture_console", "capture_code") for v in (1, "yes", None)],
    *[(name, v) for name in ("group", "best_metric", "resume_key", "wandb_project") for v in ("", "  ", 5, b"x")],
    *[(name, value) for name in FOLDERS for value in ("", 5, "a\0b", ["x"], b"x")],
    *[(name, None) for name in FOLDERS if name != "tensorboard_dir"],
    ("root", ""),
    ("root", 5),
    ("best_mode", "lowest"),
    ("best_mode", ["min"]),
    ("on_save_error", None),
    ("checkpoint_format", "ckpt"),
    *[("exit_timeout", value) for value in (-1, math.nan, math.inf, "30", None, True)],
    *[("save_on_signal", value) for value in ("SIGKILL", ("SIGTERM", 15), 15, None, ("",), {"SIGTERM": 1})],
    *[("trackers", value) for value in ((5,), 5, None, ("",))],
    *[("hooks", value) for value in ((5,), 5, None, (object,), ("text",))],
    *[("stop_before_limit", value) for value in (0, -1, math.inf, "5", True)],
    *[("compression", value) for value in ("small", "Delta", 0, 0.0)],
    *[(name, v) for name in ("snapshot", "staging", "include", "wandb_artifacts") for v in ("fast", True, None)],
    *[(name, v) for name in ("keep_best", "keep_every_steps", "weights_only_after") for v in (0, 1.0, "5", True)],
    *[(n, v) for n in ("save_every_minutes", "keep_every_minutes", "max_overhead") for v in (0, -1, math.nan, "5")],
    *[("system_metrics_every", v) for v in (0, -1, math.inf, True, "10")],
    *[("max_disk", value) for value in ("", "5 apples", 0, -1, True, 1.5, "-3GB", "0B")],
    ("backup_dir", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda part: ascii(part)[:30])
def test_a_wrong_value_is_refused_with_field_value_and_cure(name, value):
    with pytest.raises(InvalidInputError) as raised:
        ExperimentConfig(**{name: value})
    error = raised.value
    shown = (
        value
        if not isinstance(value, (tuple, list)) or name not in {"save_on_signal", "trackers", "hooks"}
        else value[-1]
    )
    assert name in error.what
    assert repr(shown) in error.what
    assert error.cure
    assert error.kind == "invalid-setting"


def test_one_signal_and_one_tracker_may_be_given_as_a_word():
    config = ExperimentConfig(save_on_signal="SIGTERM", trackers="neptune")
    assert config.save_on_signal == ("SIGTERM",)
    assert config.trackers == ("neptune",)
    assert ExperimentConfig(save_on_signal=["SIGUSR1", "SIGTERM"]).save_on_signal == ("SIGUSR1", "SIGTERM")


# -------------------------------------------------------------------- load


def settings_file(folder: Path, kind: str) -> Path:
    path = folder / f"settings.{kind}"
    if kind == "json":
        content = {"save_frequency": 2, "max_checkpoints": 2, "group": "file", "strict": True}
        path.write_text(json.dumps(content | {"profiles": {"big": {"max_checkpoints": 3, "group": "profile"}}}))
    else:
        path.write_text(
            'save_frequency = 2\nmax_checkpoints = 2\ngroup = "file"\nstrict = true\n'
            '[profiles.big]\nmax_checkpoints = 3\ngroup = "profile"\n'
        )
    return path


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_an_argument_stands_above_the_environment_the_profile_the_file_and_the_default(tmp_path, monkeypatch, kind):
    path = settings_file(tmp_path, kind)
    monkeypatch.setenv("MILEPOST_GROUP", "environment")
    monkeypatch.setenv("MILEPOST_RESUME_KEY", "environment")
    config = ExperimentConfig.load(path, profile="big", resume_key="argument")
    assert config.resume_key == "argument"
    assert config.group == "environment"
    assert config.max_checkpoints == 3
    assert config.save_frequency == 2
    assert config.strict is True
    assert config.compression is True


def test_without_a_file_the_environment_fills_what_is_not_given(monkeypatch, tmp_path):
    values = {
        "ROOT": str(tmp_path), "SAVE_FREQUENCY": "7", "COMPRESSION": "No", "EXIT_TIMEOUT": "2.5",
        "WANDB_PROJECT": "none",
        "TENSORBOARD_DIR": "", "SAVE_ON_SIGNAL": "SIGTERM, SIGUSR1", "TRACKERS": "", "BEST_MODE": "max",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"MILEPOST_{name}", value)
    config = ExperimentConfig.load()
    assert config.experiment_dir == str(tmp_path / "experiments")
    assert (config.save_frequency, config.compression, config.exit_timeout) == (7, False, 2.5)
    assert (config.wandb_project, config.tensorboard_dir) == (None, None)
    assert (config.save_on_signal, config.trackers, config.best_mode) == (("SIGTERM", "SIGUSR1"), (), "max")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MILEPOST_STRICT", "maybe"), ("MILEPOST_SAVE_FREQUENCY", "often"), ("MILEPOST_EXIT_TIMEOUT", "soon")],
)
def test_a_wrong_variable_is_named_with_its_value(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError, match=f"{variable} is '{value}'"):
        ExperimentConfig.load()


@pytest.mark.parametrize(
    ("text", "amount"),
    [("50GB", 50 * 10**9), ("1.5 TiB", 3 * 2**39), ("7", 7), ("2k", 2000), ("3 mb", 3_000_000), ("9B", 9)],
)
def test_an_amount_of_disk_is_bytes_or_a_text_with_a_unit(text, amount):
    assert bytes_of(ExperimentConfig(max_disk=text).max_disk) == amount
    assert bytes_of(ExperimentConfig(max_disk=amount).max_disk) == amount


@pytest.mark.parametrize("compression", ["delta", "bf16-moments"])
def test_only_mileposts_own_format_has_differences_and_lossy_settings(compression):
    assert ExperimentConfig(compression=compression).compression == compression
    with pytest.raises(InvalidInputError, match="checkpoint_format='milepost'"):
        ExperimentConfig(compression=compression, checkpoint_format="pt")


def test_settings_of_checkpoints_can_come_from_the_environment(monkeypatch, tmp_path):
    values = {"COMPRESSION": "delta", "MAX_DISK": "50GB", "KEEP_EVERY_STEPS": "100", "SAVE_EVERY_MINUTES": "2.5"}
    for name, value in (values | {"BACKUP_DIR": str(tmp_path / "b"), "KEEP_BEST": "3"}).items():
        monkeypatch.setenv(f"MILEPOST_{name}", value)
    config = ExperimentConfig.load()
    assert (config.compression, config.max_disk, config.keep_every_steps) == ("delta", "50GB", 100)
    assert (config.save_every_minutes, config.backup_dir, config.keep_best) == (2.5, str(tmp_path / "b"), 3)


def test_a_variable_that_parses_is_still_checked(monkeypatch):
    monkeypatch.setenv("MILEPOST_SAVE_FREQUENCY", "-3")
    with pytest.raises(InvalidInputError, match="save_frequency is -3"):
        ExperimentConfig.load()


def test_an_unknown_setting_is_refused_with_the_known_ones(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text("save_frequncy = 5")
    with pytest.raises(InvalidInputError, match=r"'save_frequncy' is no setting.*save_frequency"):
        ExperimentConfig.load(path)
    with pytest.raises(InvalidInputError, match="'colour' is no setting"):
        ExperimentConfig.load(colour="red")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.toml", b"save_frequency = ", InvalidInputError),
        ("a.json", b"{", InvalidInputError),
        ("a.json", b"[1]", InvalidInputError),
        ("a.toml", b"\xff\xfe", InvalidInputError),
        ("a.toml", b"profiles = 5", InvalidInputError),
        ("a.toml", b"profiles.big = 5", InvalidInputError),
        ("a.json", b"[" * 100_000, InvalidInputError),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name) as raised:
        ExperimentConfig.load(tmp_path / name, profile="big")
    assert raised.value.cure


def test_an_absent_file_a_folder_and_an_absent_profile_are_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"absent\.toml"):
        ExperimentConfig.load(tmp_path / "absent.toml")
    with pytest.raises(StorageError, match="directory"):
        ExperimentConfig.load(tmp_path)
    with pytest.raises(NotFoundError, match=r"no profile 'huge' in .*: profiles there: big"):
        ExperimentConfig.load(settings_file(tmp_path, "toml"), profile="huge")
    with pytest.raises(NotFoundError, match="without a settings file"):
        ExperimentConfig.load(profile="huge")


def test_disabled_is_asked_of_the_environment_and_a_typo_is_no_silence(monkeypatch):
    assert not is_disabled()
    monkeypatch.setenv("MILEPOST_MODE", "disabled")
    assert is_disabled()
    monkeypatch.setenv("MILEPOST_MODE", "dissabled")
    with pytest.raises(InvalidInputError, match="dissabled"):
        is_disabled()


def test_an_address_of_mlflow_is_absolute_and_holds_no_password(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ExperimentConfig(mlflow_uri="sqlite:///mlflow.db").mlflow_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert ExperimentConfig(mlflow_uri="http://127.0.0.1:5000").mlflow_uri == "http://127.0.0.1:5000"
    for refused in ("", 5, "./mlruns", "file:///tmp/mlruns", "https://me:secret@host", "https://secret@host"):
        with pytest.raises(InvalidInputError) as caught:
            ExperimentConfig(mlflow_uri=refused)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
