"""What is exported comes back as it was; a spreadsheet takes no answer for a formula."""

import csv
import json

import pytest

from pipeline.ranking.journal import Journal, Judgement


@pytest.fixture
def ranked(tmp_path):
    """A file of answers and a journal of all that can be said of them; returns the judgements."""
    rows = [
        {
            "prompt": "=1+1",
            "completions": ["=cmd()", "'-quoted", 'c,\n"c"'],
            "source": "maths",
            "models": ["hidden", "b", "a"],
            "arm": "hidden",
        },
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], "completions": ["no", "so"]},
        {"prompt": "Never ranked?", "completions": ["x", "y"]},
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from data.answers import iter_answer_sets
    from stages.spec import DataSource

    first, second, _ = (each.id for each in iter_answer_sets(DataSource(path=str(tmp_path / "answers.jsonl"))))
    judgements = [
        make(1, first, "ann", (2, 1, 0), (1, 2, 2), partial=True, grade=6, flags={"wrong": (0, 2)}, note="+ as I see it", seconds=3.5),
        make(2, first, "ben", (0, 1, 2), (1, 1, 3), grades=(7, None, 2)),
        make(3, second, "ann", (1, 0), None, outcome="skipped", reason="@me"),
        make(4, second, "ben", (0, 1), None, outcome="cannot say"),
        make(5, first, "ann", (0, 1, 2), (3, 2, 1), repeat=True),
        make(6, second, "model:m", (), (2, 1), model="m", pairs={"agreed": 1}),
    ]
    Journal(tmp_path / "answers.rankings.jsonl").add_all(judgements)
    return judgements


def make(number, item, annotator, order, ranks, **fields):
    fields = {"outcome": "ranked", "time": 1_795_000_000.0 + number, **fields}
    return Judgement(id=f"{number:032x}", item=item, annotator=annotator, order=order, ranks=ranks, **fields)


KEPT = ("item", "annotator", "outcome", "ranks", "partial", "grade", "flags", "note")


@pytest.mark.parametrize(
    ("form", "kept", "without"),
    [
        ("csv", (*KEPT, "order", "reason", "seconds", "time", "repeat", "model", "id", "grades"), ()),
        ("label-studio", (*KEPT, "seconds", "time", "repeat"), (6,)),
        ("argilla", KEPT, (5, 6)),
    ],
)
def test_an_export_comes_back_as_it_was(rlhf_here, tmp_path, ranked, form, kept, without):
    name = "out.csv" if form == "csv" else "out.json"
    told = rlhf_here("rankings", "answers.jsonl", "--names", "--export", name, "--format", form)
    assert told.returncode == 0, told.stderr
    told = rlhf_here("rankings", "answers.jsonl", "--journal", "again.jsonl", "--import", name)
    assert told.returncode == 0, told.stderr
    back = list(Journal(tmp_path / "again.jsonl").judgements.values())
    expected = [each for each in ranked if int(each.id, 16) not in without]
    same = [[getattr(each, field) for field in kept] for each in back]
    assert sorted(same, key=repr) == sorted(([getattr(each, field) for field in kept] for each in expected), key=repr)
    if form == "csv":
        again = rlhf_here("rankings", "answers.jsonl", "--import", name)
        assert "0 judgements of 2 answer sets" in again.stdout and "6 were there already" in again.stdout


def test_annotators_are_pseudonyms_and_no_cell_is_a_formula(rlhf_here, tmp_path, ranked):
    told = rlhf_here("rankings", "answers.jsonl", "--export", "out.csv")
    assert told.returncode == 0, told.stderr
    text = (tmp_path / "out.csv").read_text()
    rows = list(csv.DictReader(text.splitlines(keepends=True)))
    assert (
        len(rows) == 3 * 3 + 3 * 2
        and "ann" not in {row["annotator"] for row in rows}
        and all(row["annotator"].startswith(("#", "model:")) for row in rows)
    )
    assert not any((cell or "x")[0] in "=+-@\t\r" for row in rows for cell in row.values())
    assert {row["judge"] for row in rows} == {"", "m"}


def test_a_tool_gets_the_tasks_too_and_label_studio_its_interface(rlhf_here, tmp_path, ranked):
    told = rlhf_here("rankings", "answers.jsonl", "--export", "tasks.json", "--format", "label-studio")
    assert "left out: the grades of each answer in 1 judgement, which CSV alone holds" in told.stdout
    assert "hidden" not in (tmp_path / "tasks.json").read_text()  # who ranks there knows neither who said it nor why it is shown
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [len(task["annotations"]) for task in tasks] == [3, 2, 0] and tasks[1]["predictions"][0]["model_version"] == "m"
    assert tasks[0]["data"]["items"][0] == {"id": "1", "title": "Answer 1", "body": "=cmd()"}
    assert (tmp_path / "tasks.xml").read_text().count("<Bucket ") == 3


def test_a_form_that_is_not_said_is_asked_for(rlhf_here, ranked):
    told = rlhf_here("rankings", "answers.jsonl", "--export", "out.json")
    assert told.returncode == 2 and told.stderr == "--export: out.json: found no --format; needed csv, label-studio or argilla; say which\n"
