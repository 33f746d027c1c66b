"""`rlhf samples`: which answers, in which order, and what of the file is told."""

import json

import pytest

from tests.pipeline.cli.answer_rows import ESCAPE, make_rows, write_rows


@pytest.fixture
def answers(publish, store):
    """Publishes an artifact of these rows."""

    def answers(rows, kind="ppo"):
        content = rows if isinstance(rows, bytes) else write_rows(rows)
        return publish(store, kind, {"model/config.json": b"{}", "samples.jsonl": content})

    return answers


def read_responses(result):
    return [row["response"].split()[1] for row in json.loads(result.stdout)["samples"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "0 1 2 3 4"),
        (["--worst"], "7 6 5 4 3"),  # by the judge, as there is one
        (["--best", "-n", "2"], "0 1"),
        (["--best", "--by", "score", "-n", "2"], "7 6"),
        (["--worst", "--way", "sampled", "-n", "9"], "3 2 1 0"),
        (["--grep", "QUESTION 5"], "5"),
        (["--grep", "answer", "--best", "--by", "score", "--n", "1"], "7"),
    ],
)
def test_samples_are_the_first_the_worst_or_the_best_of_those_that_match(rlhf_here, answers, options, expected):
    answers(make_rows())
    result = rlhf_here("samples", "ppo", *options, "--json")
    assert result.returncode == 0, result.stderr
    assert read_responses(result) == expected.split()


def test_samples_at_random_are_others_each_time_and_none_twice(rlhf_here, answers):
    answers([{"prompt": "q", "response": f"a {number}"} for number in range(200)])
    drawn = [read_responses(rlhf_here("samples", "ppo", "--random", "-n", "20", "--json")) for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert len(set(drawn[0])) == 20


def test_without_a_judge_samples_are_ordered_by_score_and_those_without_one_are_counted(rlhf_here, answers):
    rows = [{"prompt": "q", "response": f"a {score}", "score": score} for score in (2.0, "NaN", 1.0)] + [{"prompt": "q", "response": "a x"}]
    answers(rows, "rm")
    result = rlhf_here("samples", "rm", "--worst")
    assert result.stdout.index("a 1.0") < result.stdout.index("a 2.0")
    assert "the worst by score" in result.stdout
    assert "2 without that figure are left out" in result.stdout
    assert "a x" not in result.stdout


def test_samples_in_a_pipe_are_a_line_each_and_steer_nothing(rlhf_here, answers):
    answers([{**row, "response": f"{ESCAPE}\n{'long ' * 100}"} for row in make_rows()])
    shown = rlhf_here("samples", "ppo", "-n", "3").stdout
    assert shown.splitlines()[0] == "ppo@v1: 8 answers; the first"
    assert shown.splitlines()[2] == "sampled, score 0, judge 70, KL 1.5"
    assert shown.splitlines()[3] == "  > question 0"
    assert shown.splitlines()[10] == "sampled, score 2, judge 50, KL 1.5, not finished"
    assert len(shown.splitlines()) == 1 + 3 * 4
    assert "\x1b" not in shown and "\x07" not in shown


def test_what_no_answer_has_is_told_with_what_there_is(rlhf_here, answers):
    answers(make_rows())
    for options, message in (
        (["--worst", "--by", "manners"], "found no figure manners; needed one of: score, kl, judge_score"),
        (["--way", "loud"], "found no way loud; needed one of: sampled, greedy"),
        (["--model", "sft"], "found no model sft; needed one of: none are there"),
    ):
        result = rlhf_here("samples", "ppo", *options)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr


def test_orders_exclude_one_another(rlhf_here, answers):
    answers(make_rows())
    for options in (["--worst", "--best"], ["--by", "score"]):
        assert rlhf_here("samples", "ppo", *options).returncode == 2


def test_an_artifact_without_samples_says_so(rlhf_here, publish, store):
    publish(store, "sft")
    result = rlhf_here("samples", "sft")
    assert result.returncode == 4
    assert "sft@v1: no samples.jsonl" in result.stderr


def test_lines_that_are_no_samples_are_told_and_the_others_shown(rlhf_here, answers):
    answers(b'{"prompt": "q", "response": "a good"}\nnot json\n[1]\n{"prompt": "q", "response": "a torn')
    result = rlhf_here("samples", "ppo")
    assert "a good" in result.stdout
    assert "samples.jsonl:2: found no JSON" in result.stdout
    assert "samples.jsonl:4:" in result.stdout
