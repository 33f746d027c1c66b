"""What is waited for, where no terminal shows it."""

import io

from rich.console import Console

from pipeline.report import bar
from pipeline.report.bar import Waiting


def test_elsewhere_than_on_a_terminal_lines_say_what_is_waited_for_after_two_seconds_and_then_every_ten(monkeypatch):
    times = [0.0, 1.9, 2.0, 11.9, 12.5]
    clock = iter(times)
    monkeypatch.setattr(bar.time, "monotonic", lambda: next(clock))
    said = io.StringIO()
    with Waiting(Console(file=said, width=20)) as view:
        for _ in times[1:]:
            view.doing("measuring sft with [2] of 30 layers")
    lines = [f"measuring sft with [2] of 30 layers, {after} s so far" for after in (2, 12)]
    assert said.getvalue().splitlines() == lines


def test_a_terminal_shows_it_at_once_and_takes_nothing_for_markup():
    said = io.StringIO()
    with Waiting(Console(file=said, force_terminal=True, width=60)) as view:
        view.doing("trying [bold]")
    assert "trying [bold]" in said.getvalue()
