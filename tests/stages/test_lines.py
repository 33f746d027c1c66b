"""Lines of JSON that are written and read again."""

import json
import math

import pytest

from stages.lines import read_figures, read_line, to_line


def test_a_row_is_read_as_it_was_written():
    row = {"step": 3, "text": "日本\n\u2028", "nested": {"a": [1.5, None, True]}}
    for ascii_only in (True, False):
        line = to_line(row, ascii_only=ascii_only)
        assert line.endswith("\n") and line.count("\n") == 1 and read_line(line.encode()) == row


def test_what_is_no_number_is_json_all_the_same():
    line = to_line({"loss": math.nan, "metrics": {"a": [math.inf, -math.inf], "b": 1.0}})
    read = json.loads(line, parse_constant=pytest.fail)
    assert read == {"loss": "NaN", "metrics": {"a": ["Infinity", "-Infinity"], "b": 1.0}}
    assert read_figures(read["metrics"] | {"c": "NaN"})["b"] == 1.0 and math.isnan(read_figures({"c": "NaN"})["c"])


def test_a_secret_is_not_written(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", 'a"b-canary-4711')
    assert to_line({"message": 'in a"b-canary-4711', "hf_0123456789abcdef": 1}) == '{"message": "in ***", "***": 1}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "\xff"}', "found the byte 0xff, which is not UTF-8; needed a JSON object"),
        (b"[1]", "found list; needed a JSON object"),
        (b"null", "found null; needed a JSON object"),
        (b"", "found no JSON (Expecting value: line 1 column 1 (char 0)); needed a JSON object"),
        (b"[" * 100_000, "found no JSON (maximum recursion depth exceeded"),
        (b'{"a": ' + b"9" * 5000 + b"}", "found no JSON (Exceeds the limit"),
    ],
)
def test_a_line_that_is_no_row_is_told(line, message):
    with pytest.raises(ValueError) as caught:
        read_line(line)
    assert str(caught.value).startswith(message)


def test_of_figures_only_numbers_are_taken():
    assert read_figures({"a": 1, "b": "x", "c": None, "d": [1], "e": 10**400}) == {"a": 1.0, "e": math.inf}
    assert read_figures(None) == read_figures([1]) == {}
