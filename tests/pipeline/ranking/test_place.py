"""What is mistyped of a ranking's files and options is told in one line, and leaves nothing on the disk."""

import pytest

from data.answers import AnswerSet
from data.schema import Message
from pipeline.ranking.journal import Journal, Judgement


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("rankings", "a.jsonl", "-j", "folder"), 2, "folder: found a directory; needed a file of judgements; give another --journal"),
        (("rank", "a.jsonl", "-j", "folder"), 2, "folder: found a directory; needed a file of judgements; give another --journal"),
        (("rank", "a.jsonl", "-j", "no/j.jsonl"), 5, "j.jsonl: No such file or directory; a directory that is there needed; make it, or"),
        (
            ("rankings", "a.jsonl", "-o", "no/r.jsonl"),
            5,
            "r.jsonl: No such file or directory; a directory that is there needed; make it, or",
        ),
        (("rankings", "a.jsonl", "-o", "folder"), 5, "folder: Is a directory; a file needed; give another --output"),
        (("rankings", "a.jsonl", "--import", "head.csv"), 2, "head.csv:1: found no rows; needed prompt, completion, rank, annotator; or"),
        (("rankings", "a.jsonl", "--question", "q"), 2, "found --question without --import; needed both; add --import FILE"),
        (("rankings", "a.jsonl", "--buckets", "a,b", "--export", "x.csv"), 2, "found --buckets without --import; needed both"),
        (("rankings", "a.jsonl", "--format", "csv"), 2, "found --format without --export; needed both"),
        (("rankings", "a.jsonl", "-o", "r.jsonl", "--held-out", "0.2"), 2, "found --held-out without --publish; needed both"),
        (("rankings", "a.jsonl", "--by", "people"), 2, "found --by without --output or --publish; needed one of them; add it"),
        (("rank", "a.jsonl", "-a", ""), 2, "--annotator: found the name '' of 0 characters; needed one of 1 to 100 characters in a line"),
        (("rank", "a.jsonl", "-a", "x" * 101), 2, "xxx' of 101 characters; needed one of 1 to 100 characters in a line"),
        (("rank", "a.jsonl", "-a", "ann\nben"), 2, "--annotator: found the name 'ann\\nben' of 7 characters; needed one"),
        (("rank", "a.jsonl", "-a", " ann"), 2, "without blanks around it; write it so"),
        (("rank", "a.jsonl", "-a", "ann", "-a", "ann"), 2, "--annotator: found ann twice; needed each once; leave one away"),
    ],
)
def test_a_slip_is_one_line_and_leaves_nothing(rlhf_here, tmp_path, arguments, code, told):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completions": ["a", "b"]}\n')
    said = {"id": "1" * 32, "item": AnswerSet((Message("user", "p"),), ("a", "b")).id, "annotator": "ann", "order": (0, 1)}
    Journal(tmp_path / "a.rankings.jsonl").add(Judgement(**said, outcome="ranked", ranks=(1, 2), time=0.0))
    (tmp_path / "head.csv").write_text("prompt,completion,rank\n")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    heard = rlhf_here(*arguments)
    assert heard.returncode == code and told in heard.stderr and len(heard.stderr.splitlines()) == 1
    assert heard.stdout == "" and sorted(tmp_path.rglob("*")) == before
