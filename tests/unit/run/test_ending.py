"""The last record of a run always fits, and calls after it never raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.events import StatusChanged, body_of
from milepost.run.ending import EndedLog, command_that_goes_on, end_as_said, without_secrets
from milepost.runs.recording import NOT_KEPT
from milepost.runs.segment import LARGEST_HOT_PAYLOAD


def size_of(end: StatusChanged) -> int:
    import msgspec

    return len(msgspec.msgpack.encode(body_of(end)))


@given(
    st.dictionaries(st.text(), st.floats() | st.integers() | st.text() | st.none(), max_size=20),
    st.text(max_size=50),
    st.integers(1, 3000),
)
def test_any_end_fits_the_record_of_the_hottest_log(summary, text, times):
    end = end_as_said({f"{n}{key}": value for key, value in summary.items() for n in range(times)}, "failed", text)
    end = without_secrets(
        StatusChanged(status="failed", reason=text * times, traceback=text * times, summary=end.summary)
    )
    assert size_of(end) < LARGEST_HOT_PAYLOAD - 100


def test_the_end_of_a_traceback_and_the_beginning_of_a_reason_are_kept():
    end = without_secrets(StatusChanged(status="failed", reason="first" + "é" * 5000, traceback="é" * 50_000 + "last"))
    assert end.reason.startswith("first")
    assert end.traceback.endswith("last")


def test_secrets_are_in_neither():
    token = "gh" + "p_" + "aB3" * 12
    end = without_secrets(StatusChanged(status="failed", reason=f"r {token}", traceback=f"t {token}"))
    assert token not in end.reason + end.traceback


def test_final_metrics_that_do_not_fit_are_said_and_the_first_are_kept(capsys):
    end = end_as_said({f"metric{n}": 1.0 for n in range(10_000)}, "completed", "")
    assert end.summary["metric0"] == 1.0
    assert f"{10_000 - len(end.summary)} of the final metrics do not fit" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["running", "unsure", "", None, ["completed"]])
def test_a_status_that_is_no_end_is_refused(status):
    with pytest.raises(InvalidInputError, match="status is"):
        end_as_said(None, status, "")


@pytest.mark.parametrize(("metrics", "reason"), [("abc", ""), ([1], ""), (5, ""), (None, 5), (None, None)])
def test_an_end_of_wrong_types_is_refused(metrics, reason):
    with pytest.raises(InvalidCallError):
        end_as_said(metrics, "completed", reason)


def test_what_is_logged_after_the_end_is_counted_and_said_once(capsys):
    log = EndedLog("run_1", 7)
    log.log({"loss": 1.0}, 8)
    assert log.append(StatusChanged(status="completed")) == NOT_KEPT
    log.close()
    assert (log.lost, log.last_step) == (2, 7)
    assert capsys.readouterr().err == (
        "milepost: run_1 has ended: what is logged to it is lost (said once): start another run\n"
    )


def test_the_command_that_goes_on_hides_secrets(monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["python", "train.py", "--api-key", "gh" + "p_" + "aB3" * 12, "a b"])
    command = command_that_goes_on()
    assert command.endswith("'a b'")
    assert "aB3aB3" not in command
