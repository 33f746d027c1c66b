"""Directories of files are read as files are: with their lines, and nothing of them filled in or overwritten."""

import gzip
import json

import pytest

from data.directories import find_record_files
from data.load import load_records
from data.schema import DataError

ROW, OTHER = {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def names(directory, split=None):
    return [str(path.relative_to(directory)) for path in find_record_files(directory, split)]


def test_each_bad_line_of_a_directory_is_told_with_its_file(tmp_path, source):
    write(tmp_path / "b.jsonl", ROW, "{bad\n", '{"prompt": "a", "completion": "b", "completion": "c"}\n')
    write(tmp_path / "a.jsonl", OTHER, {"prompt": "a"})
    with pytest.raises(DataError) as refused:
        load_records(source(tmp_path), "demonstrations")
    told = [str(problem).replace(f"{tmp_path}/", "") for problem in refused.value.problems]
    assert [text.split(":")[:2] for text in told] == [["a.jsonl", "2"], ["b.jsonl", "2"], ["b.jsonl", "3"]]
    assert told[2].startswith("b.jsonl:3: completion: found the key twice")


def test_records_come_in_the_order_of_the_paths_and_of_the_lines(tmp_path, source):
    write(tmp_path / "part-2.jsonl.gz", OTHER)
    write(tmp_path / "part-1.jsonl.gz", ROW, {"prompt": "e", "completion": "f"})
    write(tmp_path / "notes.md", "not a record\n")
    assert [record.completion for record in load_records(source(tmp_path), "demonstrations")] == ["b", "f", "d"]


def test_a_split_is_named_by_a_word_of_a_path(tmp_path):
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl", "dev/a.jsonl"):
        write(tmp_path / name, ROW)
    assert names(tmp_path) == []  # which one is not said
    assert names(tmp_path, "train") == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert (names(tmp_path, "test"), names(tmp_path, "validation"), names(tmp_path, "other")) == (["test.jsonl"], ["dev/a.jsonl"], [])


def test_where_names_leave_doubt_the_library_of_datasets_decides(tmp_path):
    write(tmp_path / "one" / "pretrain.jsonl", ROW)
    assert names(tmp_path / "one") == ["pretrain.jsonl"] == names(tmp_path / "one", "train") and names(tmp_path / "one", "test") == []
    write(tmp_path / "one" / "README.md", "---\nconfigs:\n- config_name: default\n---\n")
    assert names(tmp_path / "one") == []
    for other in ("b.csv", "b.parquet", "state.json", "train.jsonl"):
        write(tmp_path / other / "a.jsonl", ROW)
        write(tmp_path / other / other, ROW)
        assert names(tmp_path / other) == [], other
