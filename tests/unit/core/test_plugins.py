"""Which objects are accepted as trackers and hooks, and what is said about the others?"""

from __future__ import annotations

import types

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError
from milepost.core.plugins import HOOK_METHODS, checked_hook, checked_tracker


class Diary:
    name = "diary"

    def open(self, run, cursor):
        return True

    def write(self, records): ...

    def flush(self):
        return {}

    def close(self, end): ...


def test_names_and_objects_may_stand_side_by_side():
    diary = Diary()
    assert ExperimentConfig(trackers=["neptune", diary]).trackers == ("neptune", diary)


def test_a_missing_method_is_named():
    class Half(Diary):
        flush = None

    with pytest.raises(InvalidInputError, match="lacks flush"):
        checked_tracker(Half())


def test_a_class_is_refused_with_the_call_that_was_forgotten():
    with pytest.raises(InvalidInputError, match=r"give an object: Diary\(\.\.\.\)"):
        ExperimentConfig(trackers=[Diary])
    with pytest.raises(InvalidInputError, match=r"give an object: Diary\(\.\.\.\)"):
        checked_hook(Diary)


@pytest.mark.parametrize("name", ["", "a/b", "..", "two words", None, 5, "record", "x" * 41])
def test_a_name_that_cannot_name_a_file_or_is_taken_is_refused(name):
    diary = Diary()
    diary.name = name
    with pytest.raises(InvalidInputError, match="has the name"):
        checked_tracker(diary)


@pytest.mark.parametrize("method", HOOK_METHODS)
def test_a_hook_needs_one_of_the_methods_only_and_may_be_a_module(method):
    hook = types.ModuleType("hooks_of_the_project")
    with pytest.raises(InvalidInputError, match="run_started, checkpoint_committed, alerted, run_ended"):
        checked_hook(hook)
    setattr(hook, method, lambda *arguments: None)
    assert ExperimentConfig(hooks=[hook]).hooks == (hook,)
