"""Which reward model sees which flaw: the answers, the copies, the shares, the sentences, and the page that shows them."""

import json

import pytest
from rich.console import Console

from pipeline.report.page.write import render
from pipeline.rounds.flaws import Flaw, list_best, measure_flaws
from pipeline.rounds.page import build_rounds_page
from pipeline.rounds.table import RoundRow, print_rounds, tell_flaws, tell_gain
from stages.evaluate.results import Probe
from stages.result import Interval
from stages.statistics.bootstrap import Estimate


def make_rankings(publish, store, name, count):
    rows = [{"prompt": f"{name} {n}?", "completions": ["worse", f"I say {n}. It is so."], "ranks": [2, 1]} for n in range(count)]
    rows.append({"prompt": f"{name} tied?", "completions": ["a", "b"], "ranks": [1, 1]})
    rows.append({"prompt": f"{name} silent?", "completions": ["", "b"], "ranks": [1, 2]})
    rows.append({"prompt": "of both?", "completions": [name, "b"], "ranks": [1, 2]})
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return publish(store, "rankings", {"train.jsonl": text, "eval.jsonl": text})


def test_the_best_answers_of_all_held_out_lists_come_in_turn_each_prompt_once(publish, store):
    lists = [make_rankings(publish, store, name, count) for name, count in (("first", 3), ("second", 1))]
    found = [(each.prompt[0].content, each.completion) for each in list_best(lists)]
    assert found == [
        ("first 0?", "I say 0. It is so."),
        ("second 0?", "I say 0. It is so."),
        ("first 1?", "I say 1. It is so."),
        ("first 2?", "I say 2. It is so."),
        ("of both?", "second"),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_each_reward_model_is_asked_of_the_same_copies_and_a_broken_function_costs_its_flaws_alone(
    publish, store, fresh_model_dir, tmp_path
):
    rankings = [make_rankings(publish, store, "first", 9)]
    files = {f"model/{path.name}": path.read_bytes() for path in fresh_model_dir.iterdir()}
    models = [publish(store, "rm", files | {"README": str(n).encode()}, precision="float32") for n in range(2)]
    (tmp_path / "own_flaws.py").write_text("def edit(prompt, answer):\n    return {'shouts': answer.upper()}\n")
    heard = []
    flaws, missing = measure_flaws(models, rankings, "own_flaws:edit", str(tmp_path), lambda *done: heard.append(done))
    by_name = {flaw.name: flaw for flaw in flaws}
    assert {"shouts", "truncated", "empty", "swapped number"} <= by_name.keys() and heard[-1][0] == heard[-1][1]
    assert by_name["shouts"].seen["rm@v1"].accuracy == by_name["shouts"].seen["rm@v2"].accuracy  # the same weights
    assert by_name["shouts"].seen["rm@v1"].accuracy.num_clusters == 10 and 0 <= by_name["shouts"].seen["rm@v1"].accuracy.value <= 1
    (tmp_path / "own_flaws.py").write_text("def edit(prompt, answer):\n    raise ValueError('broken')\n")
    flaws, missing = measure_flaws(models[:1], rankings, "own_flaws:edit", str(tmp_path), lambda *_: None)
    assert "shouts" not in {flaw.name for flaw in flaws} and "empty" in {flaw.name for flaw in flaws}
    assert "own_flaws:edit raised ValueError: broken" in missing[0]


def make_flaw(name, **blind):
    def probe(is_blind):
        accuracy = Estimate(0.5, 0.3, 0.7, 10, 10) if is_blind else Estimate(0.9, 0.8, 1.0, 10, 10)
        return Probe(name=name, description=f"does {name}", accuracy=accuracy, margin=accuracy, blind=is_blind)

    return Flaw(name, f"does {name}", {model.replace("_", "@"): probe(is_blind) for model, is_blind in blind.items()})


FLAWS = [
    make_flaw("name", rm_v1=True, rm_v2=False),
    make_flaw("day", rm_v1=True, rm_v2=False),
    make_flaw("step", rm_v1=True, rm_v2=True),
    make_flaw("rude", rm_v1=False, rm_v2=True),
    make_flaw("item", rm_v1=False, rm_v2=False),
    make_flaw("order", rm_v2=False),
]


def test_it_is_said_where_the_first_was_blind_and_the_last_sees():
    assert tell_flaws(FLAWS, ["rm@v1", "rm@v2"]) == [
        "rm@v1 was blind to name, day, which rm@v2 sees",
        "rm@v2 is blind to step, as rm@v1 was",
        "rm@v2 is blind to rude, which rm@v1 saw",
    ]
    assert tell_flaws(FLAWS, ["rm@v1"]) == ["rm@v1 is blind to name, day, step"]
    assert tell_flaws(FLAWS[4:], ["rm@v1", "rm@v2"]) == ["rm@v2 sees 1 flaw of 1, and so did rm@v1"]
    assert tell_flaws(FLAWS, ["rm@v1", "rm@v2", "rm@v3"]) == []  # nobody asked the last one
    assert tell_flaws([], ["rm@v1"]) == tell_flaws(FLAWS, []) == []


def test_the_page_shows_each_round_with_its_gain_both_reward_models_and_who_sees_what():
    interval = Interval(low=0.6, high=0.8, n=50)
    gain = Estimate(1.25, 0.5, 2.0, 40, 40)
    rows = [
        RoundRow(0, 0, "sft@v1", 40.0, None, None, None),
        RoundRow(1, 900, "ppo@v1", 50.0, None, None, None, "rm@v1", {"rankings@v1": (0.7, interval)}, rankings="rankings@v1", held_out=100),
        RoundRow(2, 800, "ppo@v2", 60.0, None, gain, Estimate(10.0, 4.0, 16.0, 40, 40), "rm@v2",
                 {"rankings@v1": (0.72, interval), "rankings@v2": (0.66, None)}, Estimate(0.55, 0.45, 0.65, 90, 90), "rankings@v2", 90),
    ]  # fmt: skip
    page = render(build_rounds_page("mine", rows, FLAWS, ["one thing"]))
    text = page.replace("\u202f", " ").replace("\u00a0", " ")
    assert "<script" not in page and "Rounds of mine" in text and "one thing" in text
    assert "2 rounds are trained, on 1,700 rankings of people" in text
    assert "1 round is trained, on 900 rankings of people" in render(build_rounds_page("mine", rows[:2], [], []))
    assert "round 2 is above round 1 by +10.0 (+4.0 to +16.0) points of the judge" in text
    assert "rankings@v2: 800 rankings to train on, 90 held out for good. ppo@v1 gave the answers." in text
    assert "from 50 (ppo@v1) to 60 (ppo@v2): +1.25 (0.5 to 2) for 100 rankings" in text
    assert '<th scope="row">rankings@v1</th><td>70 % (60 % to 80 %)</td><td>72 % (60 % to 80 %)</td>' in text
    assert '<th scope="row">rankings@v2 (new answers)</th><td>55 % (45 % to 65 %)</td><td>66 %</td>' in text
    assert '<th scope="row">name: does name</th><td>50 % (30 % to 70 %) blind</td><td>90 % (80 % to 100 %)</td>' in text
    assert "drawn at random: no chosen ones" in text  # and no word of how many were ranked, which people may end at any time
    assert "rm@v1 was blind to name, day, which rm@v2 sees" in text


def test_an_old_reward_model_that_was_asked_of_one_held_out_list_alone_has_no_interval(capsys):
    before = Estimate(0.5, None, None, 3, 1)
    row = RoundRow(1, 9, "ppo@v2", 50.0, None, None, None, "rm@v2", {"rankings@v1": (0.7, None)}, before, "rankings@v1", 1)
    print_rounds(Console(width=300), [row])
    assert "rankings@v1 0.7; before, on the newest: 0.5 (no interval)" in capsys.readouterr().out


def test_with_comparisons_of_the_recipe_the_gain_is_over_the_first_policy_from_the_first_round_on():
    first = RoundRow(0, 0, "ppo@v1", 40.0, None, None, None, "rm@v1", {"held out": (0.7, None)})
    second = RoundRow(1, 900, "ppo@v2", 50.0, None, None, Estimate(10.0, 4.0, 16.0, 40, 40), "rm@v2", rankings="rankings@v1")
    assert tell_gain([first]).news == "open"
    assert tell_gain([first, second]).sentence.startswith("round 1 is above the first policy by +10.0 (+4.0 to +16.0) points of the judge")
    page = render(build_rounds_page("mine", [first, second], []))
    assert "gain over the first policy" in page and "gain over round 1" not in page


def test_what_the_first_reward_model_says_of_the_recipes_own_list_stands_beside_the_second_under_the_lists_name():
    lists = {"mine": (0.72, None), "mine/mail": (0.6, None), "rankings@v1": (0.66, None), "rankings@v1/mail": (0.61, None)}
    second = RoundRow(1, 900, "ppo@v2", None, None, None, None, "rm@v2", lists, rankings="rankings@v1")
    for name, shown in (("held out", ("70 %", "–")), ("mail", ("–", "70 %"))):
        first = RoundRow(0, 0, "ppo@v1", None, None, None, None, "rm@v1", {name: (0.7, None)})
        page = render(build_rounds_page("mine", [first, second], [])).replace("\u202f", " ").replace("\u00a0", " ")
        assert f'<th scope="row">mine</th><td>{shown[0]}</td><td>72 %</td>' in page
        assert f'<th scope="row">mine/mail</th><td>{shown[1]}</td><td>60 %</td>' in page
        assert '<th scope="row">rankings@v1 (new answers)</th><td>–</td><td>66 %</td>' in page
        assert '<th scope="row">rankings@v1/mail</th><td>–</td><td>61 %</td>' in page
