"""Pictures and their tables: parsed as XML, with data of every kind that a report may meet."""

import math
import re
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.report import charts, svg
from pipeline.report.charts import Axis, Bar, Bin, Node, Series

SVG = "{http://www.w3.org/2000/svg}"
X, Y = Axis("step"), Axis("loss")
HOSTILE = "</svg><script>alert(1)</script>\"' onload=x & \x1b[2J\x00\x9b \u202egpj \ud800 \ufffe ]]> <!-- שלום"


def line(points, **more):
    return svg.line_chart("a", "Loss", [Series("train", points, **more)], X, Y)


def parse(picture):
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    return root


def texts_of(picture):
    return [element.text for element in parse(picture).iter(f"{SVG}text")]


def described(picture):
    return parse(picture).find(f"{SVG}desc").text


def numbers_of(picture):
    return [float(number) for path in parse(picture).iter(f"{SVG}path") for number in re.findall(r"-?[\d.]+", path.get("d"))]


PICTURES = {
    "line": lambda prefix, text: svg.line_chart(
        prefix, text, [Series(text, [(0, 1), (1, 2)], [(0, 0, 2), (1, 1, 3)])], Axis(text), Axis(text)
    ),
    "bars": lambda prefix, text: svg.bar_chart(prefix, text, [Bar(text, 0.5, 0.4, 0.6)], Axis(text), 0.5),
    "reliability": lambda prefix, text: svg.reliability_chart(prefix, text, [Bin(0.6, 0.7, 0.5, 0.8, 9)], Axis(text), Axis(text)),
    "graph": lambda prefix, text: svg.graph(prefix, text, [[Node("a", text, text)], [Node("b", text)]], [("a", "b")]),
}
EMPTY = {
    "line": lambda: svg.line_chart("a", "t", [], X, Y),
    "line of nothing": lambda: line([]),
    "line of NaN": lambda: line([(0, math.nan), (math.inf, 1)]),
    "bars": lambda: svg.bar_chart("a", "t", [], X),
    "bars of NaN": lambda: svg.bar_chart("a", "t", [Bar("x", math.nan), Bar("y", None)], X, 0.5),
    "reliability": lambda: svg.reliability_chart("a", "t", [Bin(math.nan, 0.5, None, None, 0)], X, Y),
    "graph": lambda: svg.graph("a", "t", [[], []], []),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_names_itself_to_those_who_do_not_see_it(kind):
    root = parse(PICTURES[kind]("fig-1", "Title"))
    assert root.get("role") == "img" and root.get("viewBox")
    labels = root.get("aria-labelledby").split()
    assert labels == ["fig-1-title", "fig-1-desc"]
    assert [root.find(f"{SVG}{tag}").get("id") for tag in ("title", "desc")] == labels
    assert root.find(f"{SVG}title").text == "Title" and root.find(f"{SVG}desc").text


def test_ids_are_unique_over_all_pictures_of_a_page():
    page = "".join(PICTURES[kind](f"{kind}-{copy}", "x") for kind in PICTURES for copy in (1, 2))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) == 18
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


@pytest.mark.parametrize("prefix", ["", "1", 'a"b', "a b"])
def test_a_prefix_that_is_no_name_is_refused(prefix):
    with pytest.raises(ValueError, match="needed a letter"):
        svg.bar_chart(prefix, "t", [], X)


@pytest.mark.parametrize("kind", PICTURES)
def test_hostile_text_stays_text(kind):
    picture = PICTURES[kind]("a", HOSTILE)
    for element in parse(picture).iter():
        assert element.tag.removeprefix(SVG) in {
            *("svg", "title", "desc", "text", "path", "line", "rect", "circle", "defs", "marker"),
        }
        assert not {name for name in element.attrib if name.startswith("on") or name in ("style", "href", "fill", "stroke")}
    assert parse(picture).find(f"{SVG}title").text.startswith("</svg><script>alert(1)</script>\"' onload=x & \\x1b[2J\\x00\\x9b \\u202egpj")
    picture.encode()  # no half of a surrogate pair


@pytest.mark.parametrize("kind", PICTURES)
def test_a_text_of_100_kb_does_not_fill_the_page(kind):
    assert len(PICTURES[kind]("a", "x" * 100_000)) < 5000


@pytest.mark.parametrize("kind", EMPTY)
def test_no_data_is_said(kind):
    assert "no data" in texts_of(EMPTY[kind]())


def test_what_is_not_finite_is_left_out_and_counted():
    picture = line([(0, 1.0), (1, math.nan), (2, math.inf), (3, 1e200), (4, 2.0)], band=[(0, 0.5, math.nan), (4, 1.0, 3.0)])
    assert "4 values left out: not finite." in described(picture)
    assert "nan" not in picture and "inf," not in picture and "e+" not in picture
    picture = svg.bar_chart("a", "t", [Bar("a", 0.5, math.nan, 0.7), Bar("b", math.inf), Bar("c", None)], X)
    assert "2 values left out" in described(picture) and {"infinite", "–"} <= set(texts_of(picture))


def test_one_point_is_a_dot_in_the_middle():
    (dot,) = parse(line([(3, 7)])).iter(f"{SVG}circle")
    assert (float(dot.get("cx")), 0 < float(dot.get("cy")) < 260) == ((66 + 420 - 22) / 2, True)


@pytest.mark.parametrize("value", [0.0, 1e-5, -3.0, 1e99, 123456789.123])
def test_a_constant_is_a_level_line(value):
    numbers = numbers_of(line([(float(at), value) for at in range(5)]))
    assert len(set(numbers[1::2])) == 1 and len(set(numbers[::2])) == 5


def test_a_line_goes_where_its_points_are():
    numbers = numbers_of(line([(0, 0), (5, 10), (10, 0)]))
    xs, ys = numbers[::2], numbers[1::2]
    assert xs == [66, 232, 398]
    assert ys[0] == ys[2] > ys[1]
    assert (ys[0] - ys[1]) / (216 - 28) == pytest.approx(1 / 1.08, abs=0.001)  # 4 % of room above and below


def test_a_band_runs_along_its_highs_and_back_along_its_lows():
    picture = svg.line_chart("a", "t", [Series("s", [], [(0, 1, 2), (10, 1, 3)])], X, Y)
    (band,) = [path for path in parse(picture).iter(f"{SVG}path") if path.get("class").startswith("band")]
    xs, ys = (list(map(float, re.findall(r"[\d.]+", band.get("d"))[start::2])) for start in (0, 1))
    assert xs == [66, 398, 398, 66] and ys[1] < ys[0] < ys[2] == ys[3]


def test_ticks_of_ones_own_stand_where_they_are_put():
    picture = svg.line_chart("a", "t", [Series("s", [(0, 1), (2, 2)])], Axis("KL", [(0, "0"), (1, "1"), (2, "4")]), Y)
    ticks = {
        element.text: float(element.get("x")) for element in parse(picture).iter(f"{SVG}text") if element.get("class") == "tick middle"
    }
    assert ticks == {"0": 66, "1": 232, "4": 398}


def test_bars_begin_at_0_and_end_at_their_values():
    picture = svg.bar_chart("a", "t", [Bar("up", 1.0, 0.5, 1.0), Bar("down", -1.0)], X)
    up, down = parse(picture).iter(f"{SVG}rect")
    (whisker,) = [part for part in parse(picture).iter(f"{SVG}line") if part.get("class") == "whisker"]
    assert float(down.get("x")) + float(down.get("width")) == float(up.get("x")) == (128 + 268) / 2
    assert (float(up.get("width")), float(whisker.get("x1")), float(whisker.get("x2"))) == (70, 233, 268)
    assert {"1 (0.5 to 1)", "−1"} <= set(texts_of(picture))


def test_more_bars_than_there_is_room_for_are_told():
    bars = [Bar(f"source {place}", 0.5) for place in range(1000)]
    picture = svg.bar_chart("a", "t", bars, X)
    assert "and 940 more, in the table" in texts_of(picture) and "1,000 bars" in described(picture)
    assert len(picture) < 30_000


def test_a_dots_area_is_how_many_it_stands_on():
    bins = [Bin(0.6, 0.6, 0.5, 0.7, 100), Bin(0.8, 0.7, None, None, 25)]
    dots = list(parse(svg.reliability_chart("a", "t", bins, X, Y)).iter(f"{SVG}circle"))
    assert [float(dot.get("r")) for dot in dots] == [8.0, 5.5]
    assert float(dots[1].get("cx")) == pytest.approx(66 + 0.6 * 332, abs=0.1)  # the axis runs from 0.5 on


def test_arrows_lead_from_node_to_node_and_those_to_nowhere_are_told():
    layers = [[Node("base", "base")], [Node("sft", "sft@v1")], [Node("rm", "rm@v1")], [Node("ppo", "ppo@v1")]]
    picture = svg.graph("a", "t", layers, [("base", "sft"), ("sft", "rm"), ("sft", "ppo"), ("rm", "ppo"), ("gone", "ppo")])
    edges = [path for path in parse(picture).iter(f"{SVG}path") if path.get("class") == "edge"]
    assert len(edges) == 4 and "1 arrow from or to what is not there left out" in described(picture)
    numbers = [list(map(float, re.findall(r"-?[\d.]+", edge.get("d")))) for edge in edges]
    assert numbers[0][:2] == [210, 52] and numbers[0][-2:] == [210, 92]
    assert max(numbers[2][::2]) > 210 + 75 and max(numbers[0][::2]) == 210  # past the reward model's box, not behind it


def test_many_nodes_beside_one_another_widen_the_picture():
    root = parse(svg.graph("a", "t", [[Node(str(place), f"ppo@v{place}") for place in range(30)]], []))
    boxes = sorted((float(box.get("x")), float(box.get("width"))) for box in root.iter(f"{SVG}rect"))
    assert all(x + width < after for (x, width), (after, _) in pairwise(boxes))
    assert boxes[-1][0] + boxes[-1][1] < float(root.get("viewBox").split()[2])


def test_100_000_points_are_thinned_fast_and_told():
    points = [(float(at), math.sin(at / 9000) + (9 if at == 52_345 else 0)) for at in range(100_000)]
    start = time.process_time()
    picture = svg.line_chart("a", "t", [Series("s", points, [(at, value - 1, value + 1) for at, value in points])], X, Y)
    assert time.process_time() - start < 1.5
    assert len(picture) < 50_000
    assert "100,000 points" in described(picture) and "points are drawn: the first, lowest, highest and last" in described(picture)
    assert len(charts.line_table("t", [Series("s", points)], X, Y)) < 40_000


def test_every_class_has_its_rule_and_the_sheet_asks_for_nothing_from_elsewhere():
    sheet = (Path(svg.__file__).parent / "report.css").read_text(encoding="utf-8")
    used = {name for kind in PICTURES for names in re.findall(r'class="([^"]*)"', PICTURES[kind]("a", "x")) for name in names.split()}
    assert used - set(re.findall(r"\.([a-z][a-z0-9]*)", sheet)) <= {"label", "legend"}  # these two are plain text
    assert set(re.findall(r"var\((--\w+)\)", sheet)) <= set(re.findall(r"(--\w+):", sheet))
    assert "url(" not in sheet and "@import" not in sheet


# Tables


class Cells(HTMLParser):
    """The rows of a table, and the tags that it has."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_a_line_is_a_table_with_its_band():
    table = charts.line_table("t", [Series("train", [(0, 1.5), (1, math.nan)], [(0, 1, 2)])], X, Y)
    assert Cells(table).rows == [
        ["series", "step", "loss", "low", "high"],
        ["train", "0", "1.5", "1", "2"],
        ["train", "1", "not a number", "–", "–"],
    ]


def test_the_other_pictures_are_tables_too():
    assert Cells(charts.bar_table("t", [Bar("facts", 0.5, 0.4, 0.6)], X)).rows[1] == ["facts", "0.5", "0.4", "0.6"]
    assert Cells(charts.reliability_table("t", [Bin(0.6, 0.7, None, 0.8, 1234)], "pairs")).rows[1] == ["0.6", "0.7", "–", "0.8", "1,234"]
    layers = [[Node("a", "sft@v1", "x")], [Node("b", "ppo@v1")]]
    assert Cells(charts.graph_table("t", layers, [("a", "b"), ("z", "b")])).rows[1:] == [["sft@v1", "x", ""], ["ppo@v1", "", "sft@v1, z"]]


def test_hostile_text_in_a_table_stays_text_and_whole():
    cells = Cells(charts.bar_table(HOSTILE, [Bar(HOSTILE + "x" * 1000, 0.5)], Axis(HOSTILE)))
    assert cells.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert cells.rows[1][0].startswith("</svg><script>alert(1)</script>") and cells.rows[1][0].endswith("x" * 1000)


def test_a_long_table_shows_some_rows_evenly_and_says_so():
    table = charts.bar_table("t", [Bar(str(place), 0.5) for place in range(1, 1002)], X)
    places = [int(row[0]) for row in Cells(table).rows[1:]]
    assert (len(places), places[0], places[-1]) == (200, 1, 1001) and "t (200 of 1,001 rows)" in table
