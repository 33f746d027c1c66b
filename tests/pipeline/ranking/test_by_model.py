"""A language model ranks in place of people, over real HTTP: both orders, ties, cost, cache, limit; and it is never taken for a person."""

import json

import pytest

from pipeline.privacy.forget import forget
from pipeline.ranking.by_model import rank_by_points
from pipeline.ranking.journal import Journal
from pipeline.store.store import Store
from tests.chat_server import ChatServer, complete, prefers, shown


@pytest.fixture
def ask(rlhf_here, tmp_path):
    """ask(server, *options): `rlhf rank answers.jsonl --by-model`, of that server."""

    def ask(server, *options):
        return rlhf_here("rank", "answers.jsonl", "--by-model", "--url", server.url, "--model", "m-1", *options)

    rows = [{"prompt": f"{n}?", "completions": [f"{n} bb", f"{n} a", f"{n} ccc", f"{n} cCc"]} for n in range(4)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ask


@pytest.fixture
def said(tmp_path):
    return lambda: list(Journal(tmp_path / "answers.rankings.jsonl").judgements.values())


def test_points_make_ranks_and_a_circle_is_a_tie_by_hand():
    assert rank_by_points([0, 0.5, 0.5], 3) == (1, 3, 2)
    assert rank_by_points([0, 1, 0], 3) == (1, 1, 1)  # 0 beats 1, 2 beats 0, 1 beats 2
    assert rank_by_points([1, 1, 1], 3) == (3, 2, 1)


def test_answers_are_ranked_in_both_orders_and_marked_as_a_models(ask, said):
    with ChatServer(prefers(len)).serving() as server:
        told = ask(server)
    assert told.returncode == 0, told.stderr
    assert [each.ranks for each in said()] == [(3, 4, 1, 1)] * 4
    assert {(each.annotator, each.model, each.order, each.pairs["agreed"], each.pairs["tie"]) for each in said()} == {
        ("model:m-1", "m-1", (), 5, 1)
    }
    assert len(server.asked) == 1 + 4 * 6 * 2
    assert "4 sets ranked now, 0 before; of its pairs in both orders: 20 agreed, 4 tie" in told.stdout
    assert f"prompts and answers go to m-1 at {server.url}" in told.stdout


@pytest.mark.slow
def test_a_judge_that_likes_the_first_place_gives_ties_and_that_is_a_figure(ask, said, rlhf_here):
    with ChatServer(lambda body: "VERDICT: A").serving() as server:
        ask(server)
    assert [each.ranks for each in said()] == [(1, 1, 1, 1)] * 4
    told = rlhf_here("rankings", "answers.jsonl", "-o", "ranked.jsonl").stdout
    assert "4 judgements of 4 answer sets by 0 annotators and the model m-1" in told
    assert "model m-1: 4 ranked, 0 not; ties 100%" in told and "its two orders of a pair disagree           1.00 [0.51, 1.00] (n 4)" in told
    assert "agreement with people (alpha)           not known: no set was ranked by both" in told


@pytest.mark.slow
def test_the_same_command_asks_nothing_twice_and_other_guidelines_are_another_judge(ask, tmp_path):
    (tmp_path / "guide.md").write_text("Prefer short answers.")
    with ChatServer(prefers(len)).serving() as server:
        ask(server, "--limit", "1", "--guidelines", "guide.md")
        asked = len(server.asked)
        assert "Prefer short answers." in server.asked[-1]["messages"][0]["content"]
        assert "0 sets ranked now, 1 before" in ask(server, "--limit", "1", "--guidelines", "guide.md").stdout
        assert len(server.asked) == asked
        told = ask(server)
        assert (
            told.returncode == 2 and "found 1 rankings of m-1 under other guidelines or settings; needed those of one judge" in told.stderr
        )
        (tmp_path / "answers.rankings.jsonl").unlink()
        told = ask(server, "--guidelines", "guide.md")
        assert "12 of them cached" in told.stdout and len(server.asked) == asked + 1 + 3 * 12
    assert len(list((tmp_path / "store" / "replies").glob("*/*.json"))) == 4 * 12
    assert not list(tmp_path.glob("*.replies"))  # nowhere else: what follows removes all
    forget(Store(tmp_path / "store"), {b"x" * 16}, b"secret")
    assert not list((tmp_path / "store" / "replies").iterdir())


@pytest.mark.slow
def test_the_limit_on_the_cost_holds_over_all_runs_and_what_was_judged_stands(ask, said):
    prices = ("--price-input", "1000", "--price-output", "1000")  # a reply: 110 tokens, 0.11
    with ChatServer(prefers(len)).serving() as server:
        told = ask(server, *prices, "--max-cost", "5")
        assert told.returncode == 5 and "not asked, as they could cost more than is left of max_cost" in told.stderr
        judged = len(said())
        assert 0 < judged < 4 and [each.cost for each in said()] == [pytest.approx(12 * 0.11)] * judged
        again = ask(server, *prices, "--max-cost", "5")
        assert again.returncode == 5 and sum(each.cost for each in said()) <= 5
        assert (len(server.asked) - 2) * 0.11 <= 5  # without the two trials
        told = ask(server, *prices, "--max-cost", "1000")
    assert told.returncode == 0 and len(said()) == 4
    assert sum(each.cost for each in said()) == pytest.approx(4 * 12 * 0.11)
    assert "cost so far 5.28" in told.stdout


def test_a_reply_that_is_no_verdict_is_no_ranking_and_a_server_that_fails_is_told(ask, said):
    def answer(body):
        return "I cannot." if len(body["messages"]) > 1 and "0 " in shown(body)[0] else "VERDICT: A"

    with ChatServer(answer).serving() as server:
        told = ask(server)
    assert told.returncode == 0 and "1 set not ranked, as a reply was no verdict" in told.stdout
    (unclear,) = [each for each in said() if each.outcome == "cannot say"]
    assert unclear.ranks is None and unclear.reason == "6 of 6 pairs got a reply that is no verdict"
    with ChatServer(lambda body: (401, {}, b'{"error": {"message": "no key"}}')).serving() as server:
        told = ask(server, "--journal", "other.jsonl")
    assert told.returncode == 1 and told.stderr.count("\n") == 1 and "what was judged until then stands" in told.stderr


def test_people_rank_what_a_model_has_ranked_and_how_far_they_agree_is_told(ask, said, rlhf_here, tmp_path):
    with ChatServer(prefers(len)).serving() as server:
        ask(server)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    table = "".join(
        f"{row['prompt']},{text},{rank},ann\n" for row in rows for text, rank in zip(row["completions"], (3, 4, 1, 1), strict=True)
    )
    (tmp_path / "people.csv").write_text("prompt,completion,rank,annotator\n" + table)
    told = rlhf_here("rankings", "answers.jsonl", "--import", "people.csv", "-o", "ranked.jsonl", "--export", "all.csv")
    assert "by 1 annotator and the model m-1" in told.stdout
    assert "its agreement with people (alpha)           1.00 [1.00, 1.00] (n 4)" in told.stdout
    assert {json.loads(line)["judged_by"] for line in (tmp_path / "ranked.jsonl").read_text().splitlines()} == {"people"}
    assert (tmp_path / "all.csv").read_text().count(",m-1,") == 16
    as_json = json.loads(rlhf_here("rankings", "answers.jsonl", "--json").stdout)
    assert as_json["models"][0]["with_people"]["value"] == 1 and len(as_json["annotators"]) == 1
    rlhf_here("rankings", "answers.jsonl", "-o", "ranked.jsonl", "--by", "model")
    assert {json.loads(line)["judged_by"] for line in (tmp_path / "ranked.jsonl").read_text().splitlines()} == {"model m-1"}


@pytest.mark.slow
def test_a_recipe_names_the_judge_and_its_key_is_never_written(rlhf_here, ask, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-canary-123456789")
    with ChatServer(prefers(len)).serving() as server:
        block = f"ranking:\n  judge: {{url: {server.url}, model: m-2, api_key_env: JUDGE_API_KEY, request: {{seed: 3}}}}\n"
        (tmp_path / "recipe.yaml").write_text("base_model: demo\ndata: demo\n" + block)
        told = rlhf_here("rank", "answers.jsonl", "--by-model", "--recipe", "recipe.yaml")
        assert told.returncode == 0, told.stderr
        assert server.headers[-1][1]["Authorization"] == "Bearer sk-canary-123456789" and server.asked[-1]["seed"] == 3
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    assert written == [] and "canary" not in told.stdout + told.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--by-model",), "--url: found none, needed one to ask; give --url and --model, or --recipe with ranking.judge\n"),
        (("--by-model", "--url", "ftp://x", "--model", "m"), "--url: found 'ftp://x', needed http:// or https://"),
        (
            ("--by-model", "--url", "http://127.0.0.1:9/v1", "--model", "m", "--max-cost", "1"),
            "--max-cost = 1 needs --price-input and --price-output",
        ),
        (("--by-model", "--url", "http://127.0.0.1:9/v1", "--model", "m", "--price-input", "-1"), "--price-input: found -1.0; "),
        (("--url", "http://127.0.0.1:9/v1", "--price-input", "0"), "found --url, --price-input without --by-model; needed both"),
        (("--by-model", "--terminal", "-a", "ann"), "found --terminal, --annotator with --by-model, which asks no person"),
        (("--terminal", "--port", "0"), "found --port with --terminal, which has no page"),
        (("--flag", ""), "--flag: found one without a name"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_asked(ask, rlhf_here, options, told):
    heard = rlhf_here("rank", "answers.jsonl", *options)
    assert heard.returncode == 2 and told in heard.stderr


def test_usage_that_is_not_counted_costs_the_most(ask, said):
    def answer(body):
        return 200, {}, complete("VERDICT: A").replace(b'"usage"', b'"no_usage"')

    with ChatServer(answer).serving() as server:
        told = ask(server, "--price-input", "0", "--price-output", "1000", "--limit", "1")
    assert told.returncode == 0 and said()[0].cost == pytest.approx(12 * 1.024)
