"""An error says what, which value and the cure, is the builtin a caller expects, and crosses process boundaries."""

from __future__ import annotations

import copy
import pickle

import pytest

from milepost.core import errors
from milepost.core.errors import MilepostError

BUILTINS = {
    errors.InvalidInputError: ValueError,
    errors.InvalidCallError: TypeError,
    errors.NotFoundError: KeyError,
    errors.ConflictError: RuntimeError,
    errors.StorageError: OSError,
    errors.CorruptDataError: ValueError,
    errors.MissingDependencyError: ImportError,
    errors.GaveUpWaitingError: TimeoutError,
}

every_error = pytest.mark.parametrize("cls", [MilepostError, *BUILTINS])


def test_every_public_error_is_looked_at_here():
    assert {getattr(errors, name) for name in errors.__all__} == {MilepostError, *BUILTINS}


@pytest.mark.parametrize(("cls", "builtin"), BUILTINS.items())
def test_an_error_is_also_the_builtin_that_a_caller_expects(cls, builtin):
    with pytest.raises(builtin):
        raise cls("the file is gone")
    with pytest.raises(MilepostError):
        raise cls("the file is gone")


@every_error
@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_is_the_same_after_it_crossed_a_process_boundary(cls, again):
    error = again(cls("max_checkpoints is -1", cure="give 1 or more", kind="special"))
    assert type(error) is cls
    assert (error.what, error.cure, error.kind) == ("max_checkpoints is -1", "give 1 or more", "special")
    assert str(error) == "max_checkpoints is -1: give 1 or more"
    assert error.args == ("max_checkpoints is -1",)


@every_error
def test_the_text_is_what_and_cure_without_the_quotes_of_a_key_error(cls):
    assert str(cls("no run 'a'")) == "no run 'a'"
    assert str(cls("no run 'a'", cure="look again")) == "no run 'a': look again"


def test_each_error_has_a_kind_of_its_own_that_never_changes():
    kinds = {cls.__name__: cls("x").kind for cls in [MilepostError, *BUILTINS]}
    assert kinds == {
        "MilepostError": "error",
        "InvalidInputError": "invalid-input",
        "InvalidCallError": "invalid-call",
        "NotFoundError": "not-found",
        "ConflictError": "conflict",
        "StorageError": "storage",
        "CorruptDataError": "corrupt",
        "MissingDependencyError": "missing-dependency",
        "GaveUpWaitingError": "timeout",
    }


def test_the_tree_in_the_docstring_names_every_error_and_its_builtin():
    for cls, builtin in BUILTINS.items():
        line = next(line for line in errors.__doc__.splitlines() if f" {cls.__name__} " in line)
        assert f"({builtin.__name__})" in line
