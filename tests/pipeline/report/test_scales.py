"""Ranges, ticks and numbers worked by hand; thinning beside what it must keep."""

import math
import random

import pytest

from pipeline.report.scales import Scale, choose_ticks, format_value, is_drawable, make_scale, thin_band, thin_points


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.12345, "0.1235"),
        (12345.6, "12,346"),
        (-1234.5, "−1,234"),
        (-0.5, "−0.5"),
        (1.2346e-7, "1.235e-07"),
        (2e12, "2e+12"),
        (None, "–"),
        (math.nan, "not a number"),
        (math.inf, "infinite"),
        (-math.inf, "−infinite"),
    ],
)
def test_numbers_are_written_for_people(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.03, 0.97, ["0.2", "0.4", "0.6", "0.8"]),
        (-0.0, 0.149, ["0.00", "0.02", "0.04", "0.06", "0.08", "0.10", "0.12", "0.14"]),
        (-3, 9, ["−2", "0", "2", "4", "6", "8"]),
        (0, 8e6, ["0", "2 M", "4 M", "6 M", "8 M"]),
        (0, 400_000, ["0", "100 k", "200 k", "300 k", "400 k"]),
        (0, 1e10, ["0", "2 G", "4 G", "6 G", "8 G", "10 G"]),
        (0, 40_000, ["0", "10,000", "20,000", "30,000", "40,000"]),
        (-2e-5, 0, ["−2e-05", "−1.5e-05", "−1e-05", "−5e-06", "0"]),
        (1.0, 1.0005, ["1", "1.0001", "1.0002", "1.0003", "1.0004", "1.0005"]),
    ],
)
def test_ticks_are_round_and_short(low, high, labels):
    ticks = choose_ticks(low, high)
    assert [label for _, label in ticks] == labels
    assert 3 <= len(ticks) <= 9 and all(low - 1e-9 <= value <= high + 1e-9 for value, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks) and all(len(label) <= 9 for _, label in ticks)


def test_a_scale_maps_its_ends_and_holds_what_lies_outside():
    scale = Scale(2.0, 4.0, 100.0, 0.0)
    assert [scale.place(value) for value in (2.0, 3.0, 4.0, 9.0, -9.0)] == [100.0, 50.0, 0.0, 0.0, 100.0]


@pytest.mark.parametrize("values", [[7.0], [7.0, 7.0], [0.0], [-1e-9], [1e99, 1e99], []])
def test_values_that_are_all_alike_have_room_around_them(values):
    scale = make_scale(values, 0.0, 100.0)
    assert scale.high > scale.low
    assert [scale.place(value) for value in values] == [pytest.approx(50.0)] * len(values)


def test_what_is_not_finite_or_beyond_a_picture_has_no_place():
    assert is_drawable(0.0, -1e99)
    assert not any(map(is_drawable, [math.nan, math.inf, -math.inf, 1e100, None]))


def test_thinning_keeps_the_peaks_the_ends_and_the_order():
    generator = random.Random(0)
    points = [(float(at), generator.gauss(0, 1)) for at in range(100_000)]
    points[52_345], points[777] = (52_345.0, 50.0), (777.0, -50.0)
    thinned = thin_points(points, 300)
    assert len(thinned) <= 4 * 300
    assert {points[0], points[-1], points[52_345], points[777]} <= set(thinned) <= set(points)
    assert thinned == sorted(thinned)
    columns = [math.floor(at / (99_999 / 300)) for at, _ in thinned]
    for column in range(299):
        inside = [value for _, value in points[math.ceil(column * 99_999 / 300) : math.ceil((column + 1) * 99_999 / 300)]]
        kept = [value for (_, value), place in zip(thinned, columns, strict=True) if place == column]
        assert (min(kept), max(kept)) == (min(inside), max(inside))


def test_few_points_are_left_as_they_are_but_for_their_order():
    assert thin_points([(3.0, 1.0), (1.0, 2.0)], 300) == [(1.0, 2.0), (3.0, 1.0)]


def test_many_points_at_one_place_keep_their_extremes():
    assert {value for _, value in thin_points([(1.0, float(value)) for value in range(5000)], 10)} == {0.0, 4999.0}


def test_a_thinned_band_covers_the_whole_one():
    band = [(float(at), math.sin(at / 500) - at % 7, math.sin(at / 500) + at % 5) for at in range(10_000)]
    thinned = thin_band(band, 100)
    assert len(thinned) == 100
    for column, (at, low, high) in enumerate(thinned):
        inside = [part for part in band if min(int(part[0] / (9999 / 100)), 99) == column]
        assert (at, low, high) == (inside[0][0], min(part[1] for part in inside), max(part[2] for part in inside))


def test_ticks_of_steps_are_whole():
    assert [label for _, label in choose_ticks(10, 11)][:2] == ["10.0", "10.2"]
    assert [label for _, label in choose_ticks(10, 11, whole=True)] == ["10", "11"]
    assert [label for _, label in choose_ticks(0, 100, whole=True)] == ["0", "20", "40", "60", "80", "100"]
