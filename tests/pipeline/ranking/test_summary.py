"""A journal -> agreement, bias and comparisons, by hand and on simulated annotators with planted habits."""

import json
from dataclasses import replace
from random import Random

import pytest
from typer.testing import CliRunner

from data.answers import AnswerSet
from data.schema import Message
from pipeline.cli import app
from pipeline.ranking.journal import Journal, Judgement
from pipeline.ranking.study import Settings, Study
from pipeline.ranking.summary import make_comparisons, summarise
from pipeline.text import count


def make_sets(count, answers=3):
    sets = [AnswerSet((Message("user", f"{n}?"),), tuple(f"{n}-{k}" for k in range(answers))) for n in range(count)]
    return {each.id: each for each in sets}


def say(number, item, annotator, ranks, **fields):
    fields = {"order": tuple(range(len(ranks or ()))), "outcome": "ranked", "time": 0.0, **fields}
    return Judgement(id=f"{number:032x}", item=item, annotator=annotator, ranks=ranks, **fields)


def test_by_hand():
    judgements = [
        say(1, "a", "ann", (1, 2, 3), seconds=10),
        say(2, "a", "ben", (1, 3, 2), flags={"wrong": (0, 1)}),
        say(3, "a", "ann", (1, 2, 2), repeat=True, seconds=30),
        say(4, "b", "ann", None, outcome="skipped", reason="x"),
    ]
    summary = summarise(judgements)
    ann, ben = summary.annotators
    assert (summary.sets, summary.judgements, summary.flags["wrong"].answers) == (1, 4, 2)
    assert (ann.ranked, ann.skipped, ann.median_seconds) == (2, 1, 20)
    assert ann.ties == pytest.approx(1 / 6)
    assert ann.with_others.value == ben.with_others.value == pytest.approx(1 / 3)
    assert summary.with_self.value == pytest.approx(2 / 6**0.5)
    assert summary.position_bias.value == pytest.approx(7 / 8)


def test_comparisons_take_the_mean_of_several_and_no_repetition():
    sets = make_sets(3)
    first, second, _ = sets
    judgements = [
        say(1, first, "ann", (1, 2, 3)),
        say(2, first, "ben", (2, 1, 3)),
        say(3, first, "ann", (3, 2, 1), repeat=True),
        say(4, second, "ann", (2, 1, 1)),
    ]
    rows = list(make_comparisons(sets, judgements))
    assert [row["ranks"] for row in rows] == [[1, 1, 2], [2, 1, 1]]
    assert rows[0]["prompt"] == [{"role": "user", "content": "0?"}] and rows[0]["completions"] == ["0-0", "0-1", "0-2"]


def test_grades_and_flags_have_their_own_agreement_by_hand():
    judgements = [
        say(1, "a", "ann", (1, 2), grade=6, flags={"wrong": (1,)}),
        say(2, "a", "ben", (1, 2), grade=6, flags={"wrong": (1,)}),
        say(3, "b", "ann", (1, 2), grade=2, flags={"rude": (0,)}),
        say(4, "b", "ben", (2, 1), grade=2),
    ]
    summary = summarise(judgements)
    assert (summary.grade.value, summary.grade_alpha.value) == (4, 1)
    assert (summary.flags["wrong"].answers, summary.flags["wrong"].alpha.value) == (2, 1)
    # Four answers, each judged twice: one disagreement; alpha = 1 - 7 * 2 / (2 * 7 * 1).
    assert (summary.flags["rude"].answers, summary.flags["rude"].alpha.value) == (1, pytest.approx(0))


def test_a_models_rankings_stand_apart_and_its_agreement_with_people_is_a_figure_by_hand():
    sets = make_sets(3, answers=2)
    a, b, c = sets
    judgements = [
        say(1, a, "ann", (1, 2)),
        say(2, b, "ann", (1, 2)),
        say(3, a, "model:m", (1, 2), model="m", order=(), pairs={"agreed": 1}),
        say(4, b, "model:m", (2, 1), model="m", order=(), pairs={"agreed": 1}),
        say(5, c, "model:m", (1, 1), model="m", order=(), pairs={"disagreed": 1}),
        say(6, c, "model:n", None, model="n", order=(), outcome="cannot say"),
    ]
    summary = summarise(judgements, sets)
    assert [each.name for each in summary.annotators] == ["ann"] and summary.alpha is None
    m, n = summary.models
    assert m.with_people.value == pytest.approx(1 - 7 * 4 / (2 * 4 * 4))  # of four answers two alike: o_12 = o_21 = 2, n = 8
    assert (m.ranked, m.disagreed.value, m.ties, n.cannot_say, n.with_people) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3), 1, None)
    rows = {by: [(row["ranks"], row["judged_by"]) for row in make_comparisons(sets, judgements, by)] for by in ("all", "people", "model")}
    assert rows["people"] == [([1, 2], "people"), ([1, 2], "people")]
    assert rows["model"] == [([1, 2], "model m"), ([2, 1], "model m"), ([1, 1], "model m")]
    assert rows["all"] == [*rows["people"], ([1, 1], "model m")]


def test_who_disagrees_with_all_others_is_named_and_sources_are_told_apart():
    sets = {each.id: replace(each, source="odd" if n % 2 else "even") for n, each in enumerate(make_sets(60).values())}
    random, judgements = Random(5), []
    for annotator in ("ann", "ben", "cay", "dan"):
        for item in sets:
            ranks = (1, 2, 3) if annotator != "dan" and random.random() < 0.8 else tuple(random.sample((1, 2, 3), 3))
            judgements.append(say(len(judgements), item, annotator, ranks, seconds=20))
    summary = summarise(judgements, sets)
    assert [each.name for each in summary.annotators if each.disagrees_with_all] == ["dan"]
    assert {name: (source.sets, source.median_seconds) for name, source in summary.sources.items()} == {"even": (30, 20), "odd": (30, 20)}


def test_grades_of_each_answer_are_averaged_and_go_into_the_comparisons():
    sets = make_sets(2)
    first, second = sets
    judgements = [
        say(1, first, "ann", (1, 2, 3), grades=(7, 4, None)),
        say(2, first, "ben", (1, 2, 3), grades=(6, None, None)),
        say(3, second, "ann", (1, 2, 3)),
    ]
    graded, plain = make_comparisons(sets, judgements)
    assert graded["grades"] == [6.5, 4, None] and "grades" not in plain
    assert summarise(judgements).grade.value == pytest.approx(17 / 3)


def test_nothing_said_is_nothing_known():
    summary = summarise([])
    assert (summary.alpha, summary.with_self, summary.position_bias, summary.annotators) == (None, None, None, ())


def simulate(path, *, bias, noise, count=150):
    """Three people who rank by the answer's number, swayed by its place by `bias`, through the same study as the page's."""
    study = Study(make_sets(count, answers=2), Journal(path), Settings(overlap=0.3, seed=4))
    random = Random(7)
    number = 0
    for annotator in ("ann", "ben", "cay"):
        while (assignment := study.next(annotator)) is not None:
            if random.random() < bias:
                ranks = tuple(1 + assignment.order.index(answer) for answer in range(2))
            else:
                ranks = (1, 2) if random.random() >= noise else (2, 1)
            number += 1
            judgement = say(number, assignment.item, annotator, ranks, order=assignment.order, repeat=assignment.repeat)
            assert study.judge(judgement)
    return summarise(list(study.journal.judgements.values()))


def test_a_planted_bias_is_found_and_none_where_there_is_none(tmp_path):
    swayed, fair = simulate(tmp_path / "a", bias=0.3, noise=0.1), simulate(tmp_path / "b", bias=0.0, noise=0.1)
    assert swayed.position_bias.low <= 0.5 + 0.3 / 2 <= swayed.position_bias.high and swayed.position_bias.low > 0.5
    assert fair.position_bias.low <= 0.5 <= fair.position_bias.high
    # Two answers and people who are right 9 times of 10: they agree with probability .82, by tau-b .64.
    assert fair.with_self.low <= 0.64 <= fair.with_self.high
    assert swayed.alpha.value < fair.alpha.value


def test_the_command_says_it_and_writes_what_the_reward_model_reads(tmp_path):
    answers = tmp_path / "answers.jsonl"
    sets = make_sets(4)
    rows = [{"prompt": each.prompt[0].content, "completions": each.completions} for each in sets.values()]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal = Journal(tmp_path / "answers.rankings.jsonl")
    for number, item in enumerate(sets):
        journal.add(say(number, item, "ann@example.org", (1, 2, 3)))
        journal.add(say(100 + number, item, "ben", (1, 3, 2)))
    run = CliRunner().invoke(app, ["rankings", str(answers), "-o", str(tmp_path / "ranked.jsonl")])
    assert run.exit_code == 0 and "8 judgements of 4 answer sets by 2 annotators" in run.output and "4 comparisons: " in run.output
    assert "ann@example.org" not in run.output and "\n#" in run.output
    journal.add(Judgement(id="f" * 32, item=next(iter(sets)), annotator="cy", order=(0, 1, 2), outcome="cannot say", time=0.0))
    told = CliRunner().invoke(app, ["rankings", str(answers)]).output
    assert told.startswith("9 judgements by 3 annotators, 1 of them no ranking; 4 answer sets ranked\n")
    from data.load import load_records
    from stages.spec import DataSource

    records = load_records(DataSource(path=str(tmp_path / "ranked.jsonl")), "comparisons")
    assert [record.ranks for record in records] == [(1, 2, 2)] * 4
    as_json = json.loads(CliRunner().invoke(app, ["rankings", str(answers), "--json", "--names"]).output)
    assert as_json["annotators"][0]["name"] == "ann@example.org" and as_json["sets"] == 4


@pytest.mark.parametrize("command", ["rank", "rankings"])
def test_a_file_that_is_not_there_is_told_in_a_line_and_looked_up_nowhere(rlhf_here, tmp_path, command):
    told = rlhf_here(command, "nope")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "nope: no such file; a file of answers, or an artifact such as answers@v1, is needed; give one\n"
    assert "a directory" in rlhf_here(command, tmp_path).stderr


def rank_first(answers):
    asked = AnswerSet((Message("user", "q"),), ("a", "b"))
    Journal(answers.with_suffix(".rankings.jsonl")).add(say(1, asked.id, "ann", (1, 2)))


def test_comparisons_of_which_there_are_none_make_no_file(rlhf_here, tmp_path):
    """A script would go on with an empty one, and training would say later that data.comparisons holds no record."""
    (tmp_path / "one.jsonl").write_text('{"prompt": "q", "completions": ["a", "b"]}\n')
    told = rlhf_here("rankings", "one.jsonl", "-o", "ranked.jsonl")
    assert (told.returncode, told.stdout) == (2, "") and not (tmp_path / "ranked.jsonl").exists()
    found = "found 0 judgements and none that makes a comparison, needed one at least"
    assert told.stderr == f"--output: ranked.jsonl: {found}; rank answers first: `rlhf rank`\n"
    rank_first(tmp_path / "one.jsonl")
    told = rlhf_here("rankings", "one.jsonl", "-o", "ranked.jsonl", "--by", "model")
    assert (
        told.returncode == 2 and "found 1 judgement and none that makes a comparison by model, needed one at least; see --by" in told.stderr
    )


def test_one_of_something_is_told_as_one(rlhf_here, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "q", "completions": ["a", "b"]}\n')
    assert rlhf_here("rankings", "one.jsonl").stdout.startswith("0 judgements of 0 answer sets by 0 annotators\n")
    rank_first(tmp_path / "one.jsonl")
    told = rlhf_here("rankings", "one.jsonl", "-o", "ranked.jsonl")
    assert told.stdout.startswith("1 judgement of 1 answer set by 1 annotator\n")
    assert told.stdout.endswith("1 comparison: ranked.jsonl\n")
    assert (count(1, "answer set"), count(2000, "answer set")) == ("1 answer set", "2,000 answer sets")
