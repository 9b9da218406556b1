"""Complaints in the house's form: argument, expected, got."""

import pytest


def assert_rejects(calls):
    """calls: argument -> functions, each of which has to complain of that argument."""
    for name, group in calls.items():
        for call in group:
            with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
                call()
