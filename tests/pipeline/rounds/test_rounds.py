"""`rlhf round`: steps are found again by what they were made from, people are waited for, then all rankings count. With fake stages."""

import json
import shlex
import shutil
import uuid

import pytest

from pipeline.cli import demo_rounds
from pipeline.cli.rounds import open_rounds
from pipeline.errors import StoreError
from pipeline.ranking.journal import Journal, Judgement
from pipeline.ranking.place import find_answers
from pipeline.recipe.load import load_recipe
from pipeline.rounds.chain import Round, add_rankings, find_replaced, walk
from pipeline.rounds.examine import measure_elsewhere
from pipeline.store.store import Store
from stages.spec import EXIT_MISSING, EXIT_USAGE, EXIT_WAITING

pytestmark = pytest.mark.slow  # processes


@pytest.fixture
def rlhf(rlhf_here, finished_run, fake_stages, tmp_path):
    shutil.copytree(finished_run.store, tmp_path / "store", symlinks=True)
    return rlhf_here


def judge_all(store, ref, count=8, annotator="ann", **more):
    place = find_answers(store, ref)
    place.make_room()
    journal = Journal(place.journal)
    said = {"order": (0, 1), "outcome": "ranked", "ranks": (1, 2), "time": 1.0, **more}
    for item in list(place.sets)[:count]:
        journal.add(Judgement(id=uuid.uuid4().hex, item=item, annotator=annotator, **said))


def parents_of(store, ref):
    return [parent.ref for parent in store.get(ref).manifest.parents]


def test_a_round_waits_for_people_then_trains_on_old_and_new_and_the_next_begins(rlhf, finished_run, tmp_path):
    store, recipe = Store(tmp_path / "store"), finished_run.recipe_path
    first = rlhf("round", recipe)
    assert first.returncode == EXIT_WAITING, first.stderr
    assert "round 1 waits for people: 0 of 8 answer sets of answers@v1 are ranked; `rlhf rank answers@v1`" in first.stdout
    assert parents_of(store, "answers@v1") == ["ppo@v1"]
    judge_all(store, "answers@v1", 5)
    again = rlhf("round", recipe)
    assert again.returncode == EXIT_WAITING and "5 of 8 answer sets" in again.stdout and "runs, because" not in again.stdout
    planned = rlhf("plan", recipe, "--set", "rounds={}").stdout
    assert "ppo  reuse    ppo@v1" in planned and "round 1 waits for people: 5 of 8" in planned
    judge_all(store, "answers@v1")
    assert "round 1: all answers are ranked: publish the rankings" in rlhf("plan", recipe, "--set", "rounds={}").stdout
    trained = rlhf("round", recipe)
    assert trained.returncode == 0, trained.stderr
    assert "rankings@v1: published" in trained.stdout
    assert "rm: runs, because data.comparisons changed (rankings@v1 added)" in trained.stdout
    assert "round 2: ppo@v2 is there" in trained.stdout
    assert parents_of(store, "rm@v2") == ["sft@v1", "rankings@v1"] and parents_of(store, "ppo@v2") == ["sft@v1", "rm@v2"]
    second = rlhf("round", recipe, "--json")
    assert second.returncode == EXIT_WAITING and parents_of(store, "answers@v2") == ["ppo@v2"]
    told = json.loads(second.stdout)
    assert (told["round"], told["step"], [row["policy"] for row in told["rounds"]]) == (2, "rank", ["ppo@v1", "ppo@v2"])
    # What is there is taken on request, before all is ranked.
    judge_all(store, "answers@v2", 7)
    assert rlhf("rankings", "answers@v2", "--publish").returncode == 0
    assert "(rankings@v2 added)" in rlhf("plan", recipe, "--set", "rounds={}").stdout
    assert [each.step for each in walk(open_rounds(str(recipe), []), store)] == ["next", "next", "train"]


def test_a_round_in_which_people_only_skipped_waits_for_people_and_says_so_in_one_line(rlhf, finished_run, tmp_path):
    store, recipe = Store(tmp_path / "store"), finished_run.recipe_path
    rlhf("round", recipe)
    judge_all(store, "answers@v1", outcome="skipped", ranks=None, reason="not my field")
    waits = rlhf("round", recipe)
    assert waits.returncode == EXIT_WAITING and waits.stderr == ""
    told = waits.stdout.splitlines()[-1]
    assert told.startswith("round 1 waits for people: all 8 answer sets of answers@v1 are judged, but found 0 rankings, 8 x skipped; none")
    assert "`rlhf rank answers@v1 -a NAME` with another name has what was skipped ranked by somebody else" in told
    assert told.endswith(f"then `rlhf round {recipe}`")
    assert told.removesuffix("`") in rlhf("plan", recipe, "--set", "rounds={}").stdout
    said = json.loads(rlhf("round", recipe, "--json").stdout)
    assert (said["answers"], said["lack"]) == ("answers@v1", told.partition("judged, but ")[2].partition("; `rlhf rank")[0])
    # One alone cannot be trained on and tested; with a second one the round goes on.
    judge_all(store, "answers@v1", 1, annotator="ben")
    assert "found 1 ranking, 8 x skipped; 1 of them prefers" in rlhf("round", recipe).stdout
    judge_all(store, "answers@v1", 2, annotator="ben")
    assert [each.step for each in walk(open_rounds(str(recipe), []), store)] == ["publish"]


def test_ppo_begins_at_the_last_policy_where_the_recipe_says_so_and_at_sft_otherwise(rlhf, finished_run, tmp_path):
    store, options = Store(tmp_path / "store"), (finished_run.recipe_path, "--set", "rounds.start=policy")
    begins_anew = open_rounds(str(finished_run.recipe_path), ["rounds.start=sft"])
    assert rlhf("round", *options).returncode == EXIT_WAITING  # the first policy is that of any recipe: it begins at the SFT model
    assert [artifact.ref for artifact in store.list("ppo")] == ["ppo@v1"]
    judge_all(store, "answers@v1")
    rlhf("rankings", "answers@v1", "--publish")
    assert "ppo.start changed none -> ppo@v1" in " ".join(rlhf("plan", *options).stdout.split())
    trained = rlhf("round", *options)
    assert trained.returncode == 0, trained.stderr
    assert parents_of(store, "rm@v2") == ["sft@v1", "rankings@v1"]
    assert parents_of(store, "ppo@v2") == ["sft@v1", "rm@v2", "ppo@v1"]
    made = store.get("ppo@v2")
    spec = json.loads((store.root / "runs" / made.manifest.run_id / "spec.json").read_text())
    assert spec["models"]["start"] == str(store.get("ppo@v1").opened_path) and "start" not in made.manifest.config["ppo"]
    assert "round 2: ppo@v2 is there" in rlhf("plan", *options).stdout
    assert [each.step for each in walk(begins_anew, store)] == ["next", "train"]


def test_a_recipe_without_comparisons_begins_with_the_sft_model(rlhf, finished_run, tmp_path):
    store = Store(tmp_path / "store")
    options = (finished_run.recipe_path, "--set", "data.comparisons=null", "--set", "sample.which=all")
    asked = rlhf("round", *options, "--set", "rounds.held_out=0.2")
    assert asked.returncode == EXIT_WAITING and "--publish" not in asked.stdout  # nobody has ranked: there is nothing to publish
    again = ["rlhf", "round", *map(str, options), "--set", "rounds.held_out=0.2"]
    assert f"then `{shlex.join(again)}`" in asked.stdout
    assert "sample.which = all: held-out prompts are ranked, and the reward model learns from them" in asked.stdout
    assert parents_of(store, "answers@v1") == ["sft@v1"]
    judge_all(store, "answers@v1", 2)
    assert "`rlhf rankings answers@v1 --publish --held-out 0.2`" in rlhf(*again[1:]).stdout
    judge_all(store, "answers@v1")
    trained = rlhf("round", *options)
    assert trained.returncode == 0, trained.stderr
    assert "round 2: ppo@v2 is there" in trained.stdout and parents_of(store, "rm@v2") == ["sft@v1", "rankings@v1"]
    assert "round 2: ppo@v2 is there" in rlhf("plan", *options, "--set", "rounds={}").stdout


def test_a_recipe_that_chooses_draws_at_random_while_there_is_no_reward_model(rlhf, finished_run, tmp_path):
    store, choice = Store(tmp_path / "store"), ("--set", "sample.choose=deltaucb", "--set", "sample.prompts=4")
    choice += ("--set", "sample.candidate_prompts=9", "--set", "rounds={}")
    options = (finished_run.recipe_path, "--set", "data.comparisons=null", *choice)
    asked = rlhf("round", *options)
    assert asked.returncode == EXIT_WAITING, asked.stderr
    assert "there is no reward model yet that could choose; this round's answers are drawn at random" in asked.stdout
    assert parents_of(store, "answers@v1") == ["sft@v1"] and "choose" not in store.get("answers@v1").manifest.config["sample"]
    judge_all(store, "answers@v1")
    trained = rlhf("round", *options)
    assert trained.returncode == 0, trained.stderr
    assert "samples its answers for people to rank, chosen by deltaucb with rm@v2, 20% at random" in " ".join(trained.stdout.split())
    assert "chosen by deltaucb with rm@v2" in " ".join(rlhf("plan", *options).stdout.split())
    sampled = rlhf("round", *options)
    assert sampled.returncode == EXIT_WAITING and "are not those from which" not in sampled.stdout
    second = store.get("answers@v2").manifest
    assert [parent.ref for parent in second.parents][:2] == ["ppo@v2", "rm@v2"]  # and the rankings, which the comparisons are
    assert second.config["sample"]["skip_prompts"] == 4 and second.config["sample"]["candidate_prompts"] == 9


def test_other_settings_of_sampling_count_from_the_next_round_on_and_cost_nobody_a_ranking(rlhf, finished_run, tmp_path):
    store, recipe = Store(tmp_path / "store"), finished_run.recipe_path
    first, other = ("--set", "sample.prompts=4"), ("--set", "sample.prompts=2", "--set", "sample.temperature=0.5")
    rlhf("round", recipe, *first)
    # Nobody has ranked yet: the new settings count at once.
    assert "answers@v2" in rlhf("round", recipe, *first, "--set", "sample.answers=2").stdout
    judge_all(store, "answers@v1", 3)
    kept = rlhf("round", recipe, *other)
    assert kept.returncode == EXIT_WAITING and "published" not in kept.stdout
    told = " ".join(kept.stdout.split())
    assert "3 of 8 answer sets of answers@v1 are ranked" in told
    assert "answers@v1 are ranked, though sample.prompts changed 4 -> 2; sample.temperature changed 1.0 -> 0.5" in told
    assert "they stay, and the new settings count from the next round on" in told
    judge_all(store, "answers@v1")
    trained = rlhf("round", recipe, *other)
    assert trained.returncode == 0 and "round 2: ppo@v2 is there" in trained.stdout, trained.stderr
    again = rlhf("round", recipe, *other)
    assert again.returncode == EXIT_WAITING and "answers@v1 are ranked, though" in again.stdout
    settings = store.get("answers@v3").manifest.config["sample"]
    assert (settings["prompts"], settings["temperature"], settings["skip_prompts"]) == (2, 0.5, 4)  # after the four of the first round
    assert [each.step for each in walk(open_rounds(str(recipe), ["sample.prompts=2", "sample.temperature=0.5"]), store)] == ["next", "rank"]


def test_a_reward_model_that_is_to_choose_and_is_not_there_is_told_before_anything_trains(rlhf, finished_run):
    options = (finished_run.recipe_path, "--set", "seed=3", "--set", "sample.choose=deltaucb", "--set", "sample.reward_model=rm@v9")
    for command in ("round", "plan"):
        done = rlhf(command, *options, *(["--set", "rounds={}"] if command == "plan" else []))
        assert done.returncode == EXIT_MISSING and "--set: sample.reward_model: " in done.stderr and len(done.stderr.splitlines()) == 1
    assert len(json.loads(rlhf("ls", "sft", "--json").stdout)) == 1  # another seed would have trained another


def test_the_simulated_annotator_of_a_round_that_lacks_rankings_though_none_is_left_ends_with_what_is_missing(publish, store, recipe_path):
    answers = publish(store, "answers", {"answers.jsonl": b'{"prompt": "question?", "completions": ["good", "bad"]}\n'})
    judge_all(store, "answers@v1", annotator="simulated")
    found = Round(1, load_recipe(recipe_path), "rank", answers=answers, ranked=1, sets=1, lack="found 1 ranking; needed two")
    with pytest.raises(StoreError, match="round 1: found 1 ranking; needed two; give more --rankings") as refused:
        demo_rounds._rank(found, store, 0)
    assert refused.value.exit_code == EXIT_USAGE


def test_rankings_that_replace_some_from_which_a_model_learnt_are_named(publish, store):
    def make(kind, *parents):
        text = {"made.json": str(len(store.list(kind))).encode()}
        return publish(store, kind, text, parents=[{"ref": each.ref, "content_id": each.content_id} for each in parents])

    answers, others = make("answers"), make("answers")
    older, apart = make("rankings", answers), make("rankings", others)
    assert find_replaced(store, [older, apart]) == []
    newer = make("rankings", answers)
    assert find_replaced(store, [newer, apart]) == []  # nothing learnt from the older ones
    model = make("rm", older)
    assert [[each.ref for each in found] for found in find_replaced(store, [newer, apart])] == [[older.ref, newer.ref, model.ref]]
    assert find_replaced(store, [older, apart]) == []


def test_rankings_come_behind_the_sources_of_the_recipe_with_the_weight_of_rounds(recipe_path):
    recipe = load_recipe(recipe_path, ["rounds={weight: 2.0}"])
    parts = add_rankings(recipe, ["rankings@v1", "rankings@v2"]).data.comparisons.train.parts
    assert [(part.label, part.weight) for part in parts] == [("comparisons", 1.0), ("rankings@v1", 2.0), ("rankings@v2", 2.0)]
    assert add_rankings(recipe, []) is recipe


@pytest.mark.usefixtures("warm")
def test_an_old_reward_model_is_asked_of_what_it_has_not_seen(publish, store, fresh_model_dir):
    rows = [{"prompt": "question", "completions": ["yes", "no", ""], "ranks": [1, 2, 2]}] * 6
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    rankings = publish(store, "rankings", {"train.jsonl": text, "eval.jsonl": text})
    files = {f"model/{path.name}": path.read_bytes() for path in fresh_model_dir.iterdir()}
    model = publish(store, "rm", files, precision="float32")
    found = measure_elsewhere(model, rankings, lambda done, total: None)
    assert found.num_clusters == 6 and found.num_values == 12 and 0 <= found.value <= 1
    assert found.low < found.high  # though all six agree, as one question stands for all: so few of them are not sure of it
    tied = publish(store, "rankings", {"eval.jsonl": text.replace(b"[1, 2, 2]", b"[1, 1, 1]")})
    assert measure_elsewhere(model, tied, lambda done, total: None) is None
