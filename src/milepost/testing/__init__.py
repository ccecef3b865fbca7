"""How does one know that an extension of milepost keeps its contract?

For the test suites of packages that extend milepost, and for its own; it needs pytest, and nothing else imports it.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("milepost.testing.tracker_contract")

from milepost.testing.tracker_contract import Points, TrackerContract  # noqa: E402 - after its asserts are rewritten

__all__ = ["Points", "TrackerContract"]
