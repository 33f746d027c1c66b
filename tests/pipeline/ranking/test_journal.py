"""What annotators say stands on the disk, once, whoever is killed."""

import hashlib
import json
import subprocess
import sys
import textwrap

import pytest

from pipeline.errors import StoreError
from pipeline.ranking.journal import Journal, Judgement, Undo


def make(number, **changes):
    fields = {"item": "a", "annotator": "ann", "order": (1, 0), "outcome": "ranked", "ranks": (1, 2), "time": 1.0}
    return Judgement(id=f"{number:032x}", **fields | changes)


def test_a_judgement_stands_until_it_is_undone(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.add(make(1)) and journal.add(make(2, item="b"))
    assert journal.add(Undo(id=make(1).id, annotator="ann", time=2.0))
    assert not journal.add(Undo(id=make(1).id, annotator="ann", time=3.0))
    assert list(Journal(journal.path).judgements.values()) == [make(2, item="b")]


def test_the_same_one_sent_twice_counts_once(tmp_path):
    journal, other = Journal(tmp_path / "j.jsonl"), Journal(tmp_path / "j.jsonl")
    assert journal.add(make(1))
    assert not other.add(make(1))
    assert len(journal.path.read_text().splitlines()) == 1


def test_a_torn_line_is_closed_off_and_passed_over(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).add(make(1))
    with path.open("a") as stream:
        stream.write('{"kind": "judgement", "id": "00')
    journal = Journal(path)
    assert journal.add(make(2, item="b"))
    assert [each.item for each in Journal(path).judgements.values()] == ["a", "b"]


@pytest.mark.parametrize("line", ["null", '{"kind": "judgement"}', "hello", '{"kind": "wish", "id": "1"}'])
def test_a_line_that_is_none_is_told_with_its_place(tmp_path, line):
    path = tmp_path / "j.jsonl"
    Journal(path).add(make(1))
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(StoreError, match=r"j\.jsonl:2: found no judgement"):
        Journal(path)


def test_many_writers_lose_nothing(tmp_path):
    path = tmp_path / "j.jsonl"
    program = """
        import sys
        from pathlib import Path
        from pipeline.ranking.journal import Journal, Judgement
        journal = Journal(Path(sys.argv[1]))
        for number in range(20):
            name = f"{int(sys.argv[2]):016x}{number:016x}"
            journal.add(Judgement(id=name, item=name, annotator=sys.argv[2], order=(0, 1), outcome="cannot say", note="x" * 5000, time=1.0))
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(Journal(path).judgements) == 60
    assert all(json.loads(line)["kind"] == "judgement" for line in path.read_text().splitlines())


def test_pseudonyms_follow_from_a_key_that_stands_in_no_judgement_and_outlives_an_undo(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.add_all([make(1), make(2, annotator="ben", item="b")])
    name = journal.name_secretly("ann")
    ids = [make(number).id for number in (1, 2)]
    assert name not in {"#" + hashlib.sha256(f"{each}\0ann".encode()).hexdigest()[:8] for each in ids}
    assert name != journal.name_secretly("ben") and all(not each.key for each in journal.judgements.values())
    journal.add(Undo(id=make(1).id, annotator="ann", time=2.0))
    assert Journal(journal.path).name_secretly("ann") == name
    other = Journal(tmp_path / "other.jsonl")
    other.add(make(1))
    assert other.name_secretly("ann") != name
