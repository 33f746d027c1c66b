"""How figures went, as a line of blocks."""

import pytest

from pipeline.report.sparkline import draw_sparkline


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0, 1, 2, 3], "▁▃▆█"),
        ([7.0] * 3, "▄▄▄"),
        ([1.0, float("nan"), 3.0], "▁?█"),
        ([float("inf")] * 2, "??"),
        ([], ""),
        ([0, 0, 7, 7, 0, 0, 7, 7], "▁█▁█"),  # two in a column
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest_value(values, drawn):
    assert draw_sparkline(values, 4) == drawn


def test_values_near_the_ends_of_what_numbers_can_be_are_drawn():
    assert draw_sparkline([-1e308, 1e308], 10) == "▁█"
