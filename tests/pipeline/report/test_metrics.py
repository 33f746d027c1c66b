"""The figures of a stage, read from metrics.jsonl."""

import json
import math

from pipeline.report.metrics import Curves, read_curves
from pipeline.report.rows import MAX_LINE_BYTES, read_rows


def test_what_is_wanted_is_read_and_lines_that_are_no_rows_are_told(tmp_path):
    lines = ['{"step": 1, "a": 1, "c": 9}', "not json", '{"a": 2}', '{"step": 2, "a": "NaN", "b": 2}', '{"step": 3, "a"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    read = read_curves(tmp_path, ["a", "b"])
    assert read.points["a"][0] == (1, 1) and math.isnan(read.points["a"][1][1])
    assert read.points["b"] == [(2, 2)] and read.points.keys() == {"a", "b"} and read.rows == 2
    assert read.problems == (
        "metrics.jsonl: a is not finite in 1 of 2 rows",
        "metrics.jsonl: 3 lines left out, no rows of figures: line 2, 3, 5",
    )


def test_after_a_restart_points_go_by_their_steps(tmp_path):
    rows = [{"step": step, "a": place} for place, step in enumerate((1, 2, 3, 2, 3))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curves(tmp_path, ["a"]).points["a"] == [(1, 0), (2, 1), (2, 3), (3, 2), (3, 4)]


def test_a_file_that_is_not_there_or_no_plain_file_is_told(tmp_path):
    missing = "metrics.jsonl: No such file or directory; there are no curves of this stage"
    assert read_curves(tmp_path, ["a"]) == Curves(problems=(missing,))
    (tmp_path / "metrics.jsonl").mkdir()
    assert "there are no curves" in read_curves(tmp_path, ["a"]).problems[0]


def test_a_line_that_is_too_long_is_one_bad_line_and_the_next_is_read(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 2 * MAX_LINE_BYTES + b'"}\n{"b": 1}\n[1]\n{"c": 2}')
    bad = {}
    assert list(read_rows(path, bad)) == [(2, {"b": 1}), (4, {"c": 2})]
    assert bad == {1: "found more than 8,000,000 bytes; needed a shorter line", 3: "found list; needed a JSON object"}
