"""Values -> places in a picture: ranges, round ticks, numbers in words, and fewer points where many fall on one pixel."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

LARGEST = 1e100  # differences and products of what is drawn stay finite

Point = tuple[float, float]


def is_drawable(*values: float | None) -> bool:
    """Tell whether all values have a place in a picture: none is missing, NaN, infinite or beyond 1e100."""
    return all(value is not None and abs(value) < LARGEST for value in values)


def format_value(value: float | None) -> str:
    """Write a number for people: 4 significant digits, thousands set apart: 0.1235, 12.35, 12,346, 1.235e-07; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite" if value > 0 else "−infinite"
    size = abs(value)
    text = f"{value:,.0f}" if 1000 <= size < 1e9 else f"{value:.4g}"
    return text.replace("-", "−", 1) if value < 0 else text


@dataclass(frozen=True)
class Scale:
    """A straight map of [low, high] to [start, end]; high > low."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return where a value lies; one outside of the range lies on its edge."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)


def make_scale(values: Iterable[float], start: float, end: float, padding: float = 0.0) -> Scale:
    """Make a scale that holds all values, with a share of padding on both sides; a single value lies in the middle."""
    listed = list(values) or [0.0, 1.0]
    low, high = min(listed), max(listed)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = abs(low) / 2 or 0.5
        return Scale(low - around, high + around, start, end)
    margin = padding * (high - low)
    return Scale(low - margin, high + margin, start, end)


def choose_ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[tuple[float, str]]:
    """Choose round values (1, 2 or 5 times a power of ten apart; on request whole ones) in [low, high], and how each is written."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor, most in ((1, 1.5), (2, 3), (5, 7), (10, 11)) if rough < most * power)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(index * step, _write_tick(index * step, step)) for index in range(first, last + 1)]


def _write_tick(value: float, step: float) -> str:
    """Write a tick short enough for the room beside an axis: 0.02, 4,000, 250 k, 1.5 M, 2e-05."""
    size = max(abs(value), step)
    if size >= 1e12 or step < 1e-3:
        text = f"{value:.3g}" if abs(value) < 100 * step or size >= 1e12 else f"{value:.6g}"
    elif size >= 1e5:
        unit, letter = (1e9, "G") if size >= 1e9 else (1e6, "M") if size >= 1e6 else (1e3, "k")
        text = f"{value / unit:.6g} {letter}" if value else "0"
    else:
        text = f"{value:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return text.replace("-", "−", 1) if value < 0 else text


def thin_points(points: Sequence[Point], columns: int) -> list[Point]:
    """Keep the first, lowest, highest and last point of each pixel column, so that no peak is lost; by rising x."""
    ordered = sorted(points, key=lambda point: point[0])
    if len(ordered) <= 4 * columns:
        return ordered
    low = ordered[0][0]
    width = (ordered[-1][0] - low) / columns or 1.0
    kept: list[Point] = []
    start = 0
    for column in range(1, columns + 1):
        end = bisect_left(ordered, low + column * width, start, key=itemgetter(0)) if column < columns else len(ordered)
        if inside := ordered[start:end]:
            lowest, highest = min(inside, key=lambda point: point[1]), max(inside, key=lambda point: point[1])
            kept += sorted({inside[0], lowest, highest, inside[-1]}, key=lambda point: point[0])
        start = end
    return kept


def thin_band(band: Sequence[tuple[float, float, float]], columns: int) -> list[tuple[float, float, float]]:
    """Keep for each pixel column the lowest low and the highest high; by rising x."""
    ordered = sorted(band)
    if len(ordered) <= columns:
        return ordered
    low = ordered[0][0]
    width = (ordered[-1][0] - low) / columns or 1.0
    kept: dict[int, tuple[float, float, float]] = {}
    for x, bottom, top in ordered:
        column = min(int((x - low) / width), columns - 1)
        at, lowest, highest = kept.get(column, (x, bottom, top))
        kept[column] = (at, min(lowest, bottom), max(highest, top))
    return list(kept.values())
