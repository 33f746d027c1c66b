"""Plain data -> pictures as SVG: no script, no style but classes (report.css), ids that begin with the caller's prefix.

Each picture has a title and a description that says what it leaves out; `charts.py` writes the same data as a table. What stands
in a text is escaped, and a text that is too long for its place is cut with an ellipsis: it stands whole in the table.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

from pipeline.report.charts import Axis, Bar, Bin, Node, Series
from pipeline.report.markup import make_id, show
from pipeline.report.scales import LARGEST, Scale, choose_ticks, format_value, is_drawable, make_scale, thin_band, thin_points

WIDTH = 420  # user units, about CSS pixels: readable on a phone, where it is drawn at 328
_LEFT, _RIGHT, _BOTTOM = 66, 22, 44
_COLORS = 6  # classes s0 .. s5
_MOST_BARS = 60


def line_chart(prefix: str, title: str, series: Sequence[Series], x: Axis, y: Axis, height: int = 260) -> Markup:
    """Draw lines, dots and bands over two axes. Values on a log or root scale come transformed, with ticks of their own."""
    kept = [_drawable(line) for line in series]
    missing = sum(len(line.points) + len(line.band) for line in series) - sum(len(line.points) + len(line.band) for line in kept)
    values = [point for line in kept for point in line.points]
    values += [(at, bound) for line in kept for at, *bounds in line.band for bound in bounds]
    top = 12 + 16 * math.ceil(len(series) / 2)
    columns = WIDTH - _LEFT - _RIGHT
    across = make_scale([at for at, _ in values] + [at for at, _ in x.ticks], _LEFT, WIDTH - _RIGHT)
    up = make_scale([value for _, value in values] + [at for at, _ in y.ticks], height - _BOTTOM, top, padding=0.04)
    thinned = [Series(line.name, thin_points(line.points, columns), thin_band(line.band, columns), line.line, line.dots) for line in kept]
    body = [*_axes(across, up, x, y), _legend(series)] if values else [_no_data(height)]
    body += [_series(line, across, up, place) for place, line in enumerate(thinned)] if values else []
    told = f"{_count(len(series), 'series', 'series')}, {_count(sum(len(line.points) for line in series), 'point')}. " + _left_out(missing)
    if (drawn := sum(len(line.points) for line in thinned)) < sum(len(line.points) for line in kept):
        told += f" {drawn:,} points are drawn: the first, lowest, highest and last of each pixel."
    return _picture(prefix, title, f"{y.label} over {x.label}. {told}", WIDTH, height, body)


def bar_chart(prefix: str, title: str, bars: Sequence[Bar], x: Axis, reference: float | None = None) -> Markup:
    """Draw a bar from 0 for each value, with its interval; a line at a value to compare with, such as chance."""
    shown = bars[:_MOST_BARS]
    values = [value for bar in shown for value in (bar.value, bar.low, bar.high) if value is not None and is_drawable(value)]
    height = 26 * max(len(shown), 2) + _BOTTOM + 8
    told = f"{_count(len(bars), 'bar')} of {x.label}. {_left_out(sum(not is_drawable(bar.value) for bar in bars))}"
    if not values:
        return _picture(prefix, title, told, WIDTH, height, [_no_data(height)])
    across = make_scale([0.0, *values, *(at for at, _ in x.ticks), *([] if reference is None else [reference])], 128, WIDTH - 152)
    body = _x_axis(across, 6, height - _BOTTOM, x)
    body += [_bar(bar, across, 8 + 26 * place) for place, bar in enumerate(shown)]
    if reference is not None:
        at = across.place(reference)
        body.append(f'<line class="reference" x1="{at:.1f}" x2="{at:.1f}" y1="6" y2="{height - _BOTTOM}"/>')
        told += f" The line stands at {format_value(reference)}."
    if len(bars) > len(shown):
        body.append(_text(8, height - 8, f"and {len(bars) - len(shown):,} more, in the table", "note"))
    return _picture(prefix, title, told, WIDTH, height, body)


def reliability_chart(prefix: str, title: str, bins: Sequence[Bin], x: Axis, y: Axis) -> Markup:
    """Draw observed over predicted shares beside the diagonal, where they are equal; a dot's area is how many it stands on."""
    height = WIDTH - _LEFT - _RIGHT + 12 + _BOTTOM
    kept = [part for part in bins if is_drawable(part.predicted, part.observed)]
    told = f"{y.label} over {x.label}. {_count(len(bins), 'bin')}. {_left_out(len(bins) - len(kept))}"
    if not kept:
        return _picture(prefix, title, told, WIDTH, height, [_no_data(height)])
    low = 0.5 if min(part.predicted for part in kept) >= 0.5 else 0.0
    bounds = [bound for part in kept for bound in (part.observed, part.low) if bound is not None and is_drawable(bound)]
    across = Scale(low, 1.0, _LEFT, WIDTH - _RIGHT)
    up = Scale(min([low, *bounds]), 1.0, height - _BOTTOM, 12)
    ends = (across.place(low), up.place(low), across.place(1.0), up.place(1.0))
    body = [*_axes(across, up, x, y), '<line class="reference" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends)]
    most = max(part.count for part in kept) or 1
    for part in kept:
        at, value = across.place(part.predicted), up.place(part.observed)
        if part.low is not None and part.high is not None and is_drawable(part.low, part.high):
            body.append(_whisker(at, at, up.place(part.low), up.place(part.high)))
        body.append(f'<circle class="dot s0" cx="{at:.1f}" cy="{value:.1f}" r="{3 + 5 * math.sqrt(part.count / most):.1f}"/>')
    return _picture(prefix, title, told, WIDTH, height, body)


def graph(prefix: str, title: str, layers: Sequence[Sequence[Node]], edges: Sequence[tuple[str, str]]) -> Markup:
    """Draw nodes in rows, the first on top, and an arrow for each edge (from, to) of names; edges to no node are left out."""
    width = max(WIDTH, 112 * max([len(layer) for layer in layers], default=0))
    height = max(88 * len(layers) - 28, 60)
    places = {
        node.name: (width * (2 * place + 1) / (2 * len(layer)), 4.0 + 88 * row)
        for row, layer in enumerate(layers)
        for place, node in enumerate(layer)
    }
    drawn = [edge for edge in edges if edge[0] in places and edge[1] in places]
    told = f"{_count(len(places), 'node')}, {_count(len(edges), 'arrow')}."
    if len(drawn) < len(edges):
        told += f" {_count(len(edges) - len(drawn), 'arrow')} from or to what is not there left out."
    arrow = make_id(prefix, "arrow")
    body = [
        f'<defs><marker id="{arrow}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path class="arrowhead" d="M0 0L8 4L0 8z"/></marker></defs>'
    ]
    body += [_edge(places[start], places[end], arrow) for start, end in drawn]
    body += [_node(node, *places[node.name], width / len(layer) - 12) for layer in layers for node in layer]
    return _picture(prefix, title, told, width, height, body if places else [_no_data(height)])


def _picture(prefix: str, title: str, description: str, width: int, height: float, body: Sequence[str]) -> Markup:
    title_id, desc_id = make_id(prefix, "title"), make_id(prefix, "desc")
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-labelledby="{title_id} {desc_id}"><title id="{title_id}">{show(title, 200)}</title>'
        f'<desc id="{desc_id}">{show(description, 500)}</desc>{"".join(body)}</svg>'
    )


def _drawable(line: Series) -> Series:
    points = [(at, value) for at, value in line.points if abs(at) < LARGEST and abs(value) < LARGEST]  # NaN is below nothing
    return Series(line.name, points, [part for part in line.band if is_drawable(*part)], line.line, line.dots)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _left_out(missing: int) -> str:
    return f"{_count(missing, 'value')} left out: not finite." if missing else ""


def _text(x: float, y: float, text: str, kind: str = "", limit: int = 60) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{show(text, limit)}</text>'


def _no_data(height: float) -> str:
    return _text(WIDTH / 2, height / 2, "no data", "none middle")


def _axes(across: Scale, up: Scale, x: Axis, y: Axis) -> list[str]:
    drawn: list[str] = []
    for value, label in y.ticks or choose_ticks(up.low, up.high):
        at = up.place(value)
        drawn.append(f'<line class="grid" x1="{across.start:.1f}" x2="{across.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        drawn.append(_text(across.start - 6, at + 4, label, "tick end", 9))
    middle = (up.start + up.end) / 2
    drawn.append(f'<text class="label middle" transform="translate(12 {middle:.1f}) rotate(-90)">{show(y.label, 32)}</text>')
    return drawn + _x_axis(across, up.end, up.start, x)


def _x_axis(across: Scale, top: float, bottom: float, x: Axis) -> list[str]:
    drawn = [f'<line class="axis" x1="{across.start:.1f}" x2="{across.end:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>']
    for value, label in x.ticks or choose_ticks(across.low, across.high, whole=x.whole):
        at = across.place(value)
        drawn.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        drawn.append(_text(at, bottom + 15, label, "tick middle", 9))
    return [*drawn, _text((across.start + across.end) / 2, bottom + 33, x.label, "label middle", 48)]


def _legend(series: Sequence[Series]) -> str:
    drawn = ""
    for place, line in enumerate(series):
        x, y = _LEFT + 180 * (place % 2), 14 + 16 * (place // 2)
        drawn += f'<rect class="swatch s{place % _COLORS}" x="{x}" y="{y - 9}" width="10" height="10"/>' + _text(
            x + 15, y, line.name, "legend", 25
        )
    return drawn


def _series(line: Series, across: Scale, up: Scale, place: int) -> str:
    kind, drawn = f"s{place % _COLORS}", ""
    if line.band:
        edge = [(at, high) for at, _, high in line.band] + [(at, low) for at, low, _ in reversed(line.band)]
        drawn += _path(edge, across, up, f"band {kind}", "z")
    if line.line and len(line.points) > 1:
        drawn += _path(line.points, across, up, f"line {kind}")
    if line.dots or len(line.points) == 1 or not line.line:
        drawn += "".join(
            f'<circle class="dot {kind}" cx="{across.place(at):.1f}" cy="{up.place(value):.1f}" r="3"/>' for at, value in line.points
        )
    return drawn


def _path(points: Sequence[tuple[float, float]], across: Scale, up: Scale, kind: str, end: str = "") -> str:
    return f'<path class="{kind}" d="M{"L".join(f"{across.place(at):.1f} {up.place(value):.1f}" for at, value in points)}{end}"/>'


def _whisker(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="whisker" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _bar(bar: Bar, across: Scale, y: float) -> str:
    drawn = _text(across.start - 8, y + 15, bar.label, "label end", 18)
    if bar.value is None or not is_drawable(bar.value):
        return drawn + _text(across.end + 8, y + 15, format_value(bar.value), "tick")
    start, end = sorted((across.place(0.0), across.place(bar.value)))
    drawn += f'<rect class="bar s0" x="{start:.1f}" y="{y + 3:.1f}" width="{end - start:.1f}" height="16"/>'
    interval = ""
    if bar.low is not None and bar.high is not None and is_drawable(bar.low, bar.high):
        drawn += _whisker(across.place(bar.low), across.place(bar.high), y + 11, y + 11)
        interval = f" ({bar.low:.3g} to {bar.high:.3g})"
    return drawn + _text(across.end + 8, y + 15, f"{bar.value:.3g}{interval}".replace("-", "−"), "tick", 26)


def _edge(start: tuple[float, float], end: tuple[float, float], arrow: str) -> str:
    """A straight line to the next row; around what stands between to a row further on."""
    (x1, y1), (x2, y2) = (start[0], start[1] + 48), end
    side = 0 if y2 - start[1] < 100 else -130 if x2 < x1 else 130
    curve = f"M{x1:.1f} {y1:.1f}C{x1 + side:.1f} {y1 + 20:.1f} {x2 + side:.1f} {y2 - 20:.1f} {x2:.1f} {y2:.1f}"
    return f'<path class="edge" marker-end="url(#{arrow})" d="{curve}"/>'


def _node(node: Node, x: float, y: float, room: float) -> str:
    width = min(room, 150.0)
    letters = int(width / 7)
    box = f'<rect class="node" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="48" rx="6"/>'
    lines = _text(x, y + (20 if node.detail else 28), node.label, "name middle", letters)
    return box + lines + (_text(x, y + 37, node.detail, "tick middle", letters + 2) if node.detail else "")
