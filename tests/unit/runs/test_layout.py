"""The names of all files stand in one place."""

import json

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError
from milepost.runs.layout import RunLayout, milepost_log, parse_log_name


def test_everything_lies_where_the_settings_say(tmp_path):
    layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "bert_1")
    assert layout.metadata == tmp_path / "experiments/bert_1/metadata.json"
    assert layout.log == tmp_path / "metrics/bert_1"
    assert layout.tensorboard == tmp_path / "runs/bert_1"
    assert layout.checkpoints == tmp_path / "checkpoints"
    assert layout.cursor("my guest/../x").parent == layout.log
    assert milepost_log(layout.logs_dir, 7) == tmp_path / "logs/milepost-7.log"


def test_a_layout_survives_json(tmp_path):
    layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path), tensorboard_dir=None), "bert_1")
    assert RunLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert layout.tensorboard is None


@pytest.mark.parametrize("copy", [0, 1, 12])
def test_the_name_of_a_log_file_says_whose_it_is_and_where_it_begins(tmp_path, copy):
    layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "bert_1")
    log_id = bytes(range(16))
    parts = parse_log_name(layout.durable_log(log_id, 1 << 23, copy).name)
    assert parts is not None
    assert (parts.log_id, parts.first_sequence, parts.copy) == (log_id, 1 << 23, copy)


@pytest.mark.parametrize(
    "name", ["wal-00-00.mlog", "x", f"wal-{'0' * 32}-{'0' * 16}.x.mlog", f"wal-{'0' * 32}-{'0' * 16}.mlog\n"]
)
def test_other_names_are_no_log_files(name):
    assert parse_log_name(name) is None


@pytest.mark.parametrize("bad", ["", "..", "../x", ".hidden", "-rf", "a/b", "con"])
def test_an_id_that_could_leave_its_folder_is_refused(tmp_path, bad):
    with pytest.raises(InvalidInputError):
        RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), bad)
