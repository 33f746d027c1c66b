"""Waiting for other processes in tests."""

import time


def wait_until(condition, limit_s=10.0, why=lambda: "waited too long"):
    """Wait until the condition holds; what `why` returns is told when it does not in time."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, why()
        time.sleep(0.02)
