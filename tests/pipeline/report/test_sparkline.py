"""How figures went, as a line of blocks."""

import json
import time
from itertools import pairwise

import pytest

from pipeline.report.sparkline import draw_sparkline, read_series


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


def test_a_short_file_is_read_whole_and_lines_that_are_no_rows_are_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1}\nnot json\n{"step": 2, "a": "NaN", "b": 2}\n{"step": 3, "a"')
    series = read_series(tmp_path)
    assert series["step"] == [1, 2] and series["b"] == [2]


def test_of_a_long_file_rows_are_read_evenly_each_once_with_the_first_and_the_last(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        for step in range(100_000):
            stream.write(json.dumps({"step": step, "text": "x" * (step % 100)}) + "\n")
    began = time.perf_counter()
    steps = read_series(tmp_path)["step"]
    assert time.perf_counter() - began < 1.0  # reading all takes as long as all of it is
    assert steps[0] == 0 and steps[-1] == 99_999
    assert steps == sorted(set(steps))
    assert len(steps) > 900 and max(b - a for a, b in pairwise(steps)) < 250


def test_a_file_that_is_no_plain_file_is_refused(tmp_path):
    with pytest.raises(OSError):
        read_series(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises((OSError, ValueError)):
        read_series(tmp_path)
