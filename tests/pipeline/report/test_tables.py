"""Tables on terminals of several widths."""

import io

import pytest
from rich.console import Console

from pipeline.report.tables import print_turned_table

COLUMNS = ["model", "score", "judge", "KL", "tokens", "finished"]
ROWS = [
    ["base", "-12.7 (-15 to -9.5)", "4.17 (0 to 10)", "146 (111 to 183)", "31.08", "4 %"],
    ["sft", "0.297 (-2.1 to 2.7)", "34.9 (24 to 46)", "", "7.531", "100 %"],
    ["ppo", "0.612 (-3.9 to 5.7)", "47.9 (21 to 73)", "0.91 (-0.16 to 1.9)", "7.083", "100 %"],
]


@pytest.mark.parametrize(("width", "first"), [(100, "model score judge KL tokens finished"), (80, "model base sft ppo")])
def test_a_table_that_is_too_wide_for_a_terminal_is_turned_and_no_cell_is_broken(width, first):
    shown = io.StringIO()
    print_turned_table(Console(file=shown, force_terminal=True, color_system=None, width=width), COLUMNS, ROWS)
    lines = shown.getvalue().splitlines()
    assert " ".join(lines[0].split()) == first
    assert max(map(len, lines)) <= width
    for cell in (cell for row in ROWS for cell in row):
        assert cell in shown.getvalue()


def test_in_a_pipe_rows_stay_rows():
    shown = io.StringIO()
    print_turned_table(Console(file=shown, width=80), COLUMNS, ROWS)
    assert len(shown.getvalue().splitlines()) == 4
