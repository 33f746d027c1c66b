"""What a picture is given: plain data, and the same as a table to stand beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report.markup import table
from pipeline.report.scales import Point, format_value

_MOST_ROWS = 200


@dataclass(frozen=True)
class Axis:
    """A name with its unit; ticks of one's own where values are transformed (log, root) before they are drawn, or whole numbers only."""

    label: str
    ticks: Sequence[tuple[float, str]] = ()
    whole: bool = False


@dataclass(frozen=True)
class Series:
    """A line through points, dots, or both; a band of (x, low, high) around it."""

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    line: bool = True
    dots: bool = False


@dataclass(frozen=True)
class Bar:
    """A value with its interval; None where it is not known."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Bin:
    """Predicted beside observed, with the interval of the latter and how many it stands on."""

    predicted: float
    observed: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Node:
    """A box of a graph, with a second, smaller line."""

    name: str
    label: str
    detail: str = ""


def pick_rows(count: int) -> list[int]:
    """Choose which of so many rows a table shows: all, or 200 of them evenly, the first and the last among them."""
    if count <= _MOST_ROWS:
        return list(range(count))
    return [round(place * (count - 1) / (_MOST_ROWS - 1)) for place in range(_MOST_ROWS)]


def count_rows(shown: int, count: int) -> str:
    """Say in a caption that rows are missing."""
    return "" if shown == count else f" ({shown:,} of {count:,} rows)"


def line_table(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """Write the points of all series, each with its band where there is one at that x."""
    flat: list[tuple[str, Point, tuple[float | None, float | None]]] = []
    for line in series:
        band = {at: (low, high) for at, low, high in line.band}
        flat += [(line.name, point, band.get(point[0], (None, None))) for point in line.points]
    rows = [flat[place] for place in pick_rows(len(flat))]
    cells = [(name, *map(format_value, (at, value, low, high))) for name, (at, value), (low, high) in rows]
    return table(title + count_rows(len(rows), len(flat)), ("series", x.label, y.label, "low", "high"), cells)


def bar_table(title: str, bars: Sequence[Bar], x: Axis) -> Markup:
    """Write the bars."""
    rows = [bars[place] for place in pick_rows(len(bars))]
    cells = [(bar.label, *map(format_value, (bar.value, bar.low, bar.high))) for bar in rows]
    return table(title + count_rows(len(rows), len(bars)), ("", x.label, "low", "high"), cells)


def reliability_table(title: str, bins: Sequence[Bin], count: str) -> Markup:
    """Write the bins; `count` names what is counted, such as pairs."""
    cells = [(*map(format_value, (part.predicted, part.observed, part.low, part.high)), f"{part.count:,}") for part in bins]
    return table(title, ("predicted", "observed", "low", "high", count), cells)


def graph_table(title: str, layers: Sequence[Sequence[Node]], edges: Sequence[tuple[str, str]]) -> Markup:
    """Write the nodes, each with those that it comes from."""
    labels = {node.name: node.label for layer in layers for node in layer}
    parents: dict[str, list[str]] = {name: [] for name in labels}
    for start, end in edges:
        parents.setdefault(end, []).append(labels.get(start, start))
    cells = [(node.label, node.detail, ", ".join(parents[node.name])) for layer in layers for node in layer]
    return table(title, ("name", "what", "made from"), cells)
