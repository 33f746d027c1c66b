"""`rlhf sample`: an artifact of answers with its lineage, reused, told apart by policy, prompts and settings. With a fake stage."""

import json
import shutil

import pytest

from data.answers import iter_answer_sets
from pipeline.errors import StoreError
from pipeline.recipe.load import load_recipe
from pipeline.rounds.sampling import find_chooser
from stages.spec import EXIT_MISSING, EXIT_USAGE, EXIT_VERIFICATION, DataSource

pytestmark = pytest.mark.slow  # a process each


@pytest.fixture
def rlhf(rlhf_here, finished_run, fake_stages, tmp_path):
    shutil.copytree(finished_run.store, tmp_path / "store", symlinks=True)
    return rlhf_here


def listed(rlhf):
    return [row["ref"] for row in json.loads(rlhf("ls", "answers", "--json").stdout)]


def test_answers_are_an_artifact_with_its_policies_as_parents_and_are_reused(rlhf, tmp_path):
    told = rlhf("sample", "ppo", "--k", 2, "--with", "sft@v1")
    assert told.returncode == 0, told.stderr
    assert "sample: published answers@v1" in told.stdout and "rlhf rank answers@v1" in told.stdout
    manifest = json.loads((tmp_path / "store/artifacts/answers/v0001/manifest.json").read_text())
    assert [parent["ref"] for parent in manifest["parents"]] == ["ppo@v1", "sft@v1"]
    assert manifest["config"]["sample"]["answers"] == 2 and manifest["config"]["sample"]["temperature"] == 1.0
    source = DataSource.model_validate({"path": str(tmp_path / "store/artifacts/answers/v0001/answers.jsonl")})
    assert next(iter_answer_sets(source)).models == ("ppo@v1", "sft@v1")
    assert "reused answers@v1" in rlhf("sample", "ppo", "--k", 2, "--with", "sft@v1", "--set", "sample.batch_size=3").stdout
    assert "because sample.temperature changed 1.0 -> 0.5" in rlhf("sample", "ppo", "--k", 2, "--with", "sft", "--temperature", 0.5).stdout
    assert "because sft@v1 changed sft@v1 -> none" in rlhf("sample", "ppo", "--k", 2, "--set", "sample.temperature=0.5").stdout
    other = rlhf("sample", "sft", "--k", 2, "--with", "ppo@v1").stdout  # answers most where the shares are not even
    assert "published answers@v4" in other
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "mine?"}) + "\n")
    assert "data.prompts changed" in rlhf("sample", "ppo", "--k", 2, "--prompts", tmp_path / "own.jsonl").stdout
    assert listed(rlhf) == [f"answers@v{number}" for number in range(1, 6)]
    assert rlhf("verify").returncode == 0
    assert "ppo@v1" in rlhf("lineage", "answers@v1").stdout


def test_what_cannot_answer_or_be_found_is_refused_before_anything_runs(rlhf):
    assert "rm@v1 is a reward model" in rlhf("sample", "rm").stderr
    again = rlhf("sample", "ppo", "--with", "ppo@v1")
    assert again.returncode == EXIT_USAGE and "found ppo@v1 twice" in again.stderr
    assert rlhf("sample", "ppo@v7").returncode == EXIT_MISSING
    assert "--prompts" in (missing := rlhf("sample", "ppo", "--prompts", "held_out")).stderr, missing.stderr
    assert missing.returncode == EXIT_USAGE and missing.stderr.endswith("did you mean held-out?\n")
    assert listed(rlhf) == []


def test_a_reward_model_chooses_and_stands_among_the_parents_and_in_the_key(rlhf, tmp_path):
    before = rlhf("sample", "ppo", "--k", 2)
    assert "published answers@v1" in before.stdout
    told = rlhf("sample", "ppo", "--k", 2, "--choose", "deltaucb", "--candidates", 6)
    assert told.returncode == 0 and "published answers@v2" in told.stdout and "are not those from which" not in told.stdout, told.stderr
    manifest = json.loads((tmp_path / "store/artifacts/answers/v0002/manifest.json").read_text())
    assert [parent["ref"] for parent in manifest["parents"]] == ["ppo@v1", "rm@v1"]  # the one from which ppo@v1 learnt
    settings = manifest["config"]["sample"]
    assert (settings["choose"], settings["candidates"], settings["random_share"]) == ("deltaucb", 6, 0.2)
    assert "comparisons.train" in manifest["data"]
    spec = json.loads((tmp_path / "store/runs" / manifest["run_id"] / "spec.json").read_text())
    assert list(spec["models"]) == ["ppo@v1", "rm"] and "comparisons" in spec["data"]
    options = ("--k", 2, "--choose", "deltaucb", "--candidates", 6)
    assert "reused answers@v2" in rlhf("sample", "ppo", *options, "--reward-model", "rm@v1").stdout
    assert "because sample.beta changed 1.0 -> 2.0" in rlhf("sample", "ppo", *options, "--set", "sample.beta=2.0").stdout
    # Keys of what chooses nothing are as they were before there was a choice, and hold nothing of it.
    assert "reused answers@v1" in rlhf("sample", "ppo", "--k", 2).stdout
    plain = json.loads((tmp_path / "store/artifacts/answers/v0001/manifest.json").read_text())
    assert (
        not {"choose", "candidates", "beta", "random_share"} & plain["config"]["sample"].keys() and "comparisons.train" not in plain["data"]
    )


def test_what_cannot_choose_is_refused_in_one_line_before_anything_runs(rlhf):
    def refused(*arguments):
        done = rlhf("sample", *arguments)
        assert done.returncode == EXIT_USAGE and len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr

    told = refused("sft", "--choose", "deltaucb")
    assert "sample.choose: found deltaucb, and sft@v1 learnt from no reward model; needed one that chooses; set sample.reward_model" in told
    assert "sample.reward_model: found ppo@v1, which is no reward model" in refused("ppo", "--choose", "deltaucb", "--reward-model", "ppo")
    told = refused("ppo", "--choose", "deltaucb", "--k", 9)
    assert "found candidates = 8, needed more than answers = 9, to choose from; raise it" in told
    assert rlhf("sample", "ppo", "--choose", "deltaucb", "--reward-model", "rm@v9").returncode == EXIT_MISSING
    assert listed(rlhf) == []


def test_an_error_begins_with_the_option_that_was_typed(rlhf, tmp_path):
    def told(*options):
        return rlhf("sample", "ppo", *options).stderr

    choose = ("--choose", "deltaucb")
    assert told("--candidates", 12).startswith("--candidates: sample.candidates: found 12, which nothing reads with sample.choose: random")
    assert told("--candidates", 3, "--k", 4, *choose).startswith(
        "--k, --candidates: sample: found candidates = 3, needed more than answers = 4"
    )
    assert told("--k", 9, *choose).startswith("--k: sample: found candidates = 8, needed more than answers = 9")
    assert told("--set", "sample.answers=9", *choose).startswith("--set: sample: found candidates = 8")
    assert told("--k", 4, "--set", "sample.candidates=3", *choose).startswith("--k, --set: sample: found candidates = 3")
    assert told("--reward-model", "rm@v9", *choose).startswith("--reward-model: sample.reward_model: no artifact rm@v9 in ")
    assert told("--reward-model", "ppo", *choose).startswith("--reward-model: sample.reward_model: found ppo@v1, which is no reward model")
    assert rlhf("sample", "sft", *choose).stderr.startswith("--choose: sample.choose: found deltaucb, and sft@v1 learnt from no reward")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert "bad.jsonl:1" in told("--prompts", "bad.jsonl")  # as a path: from here, not from the recipe's place
    assert listed(rlhf) == []


def test_a_reward_model_that_learnt_from_other_comparisons_is_told(rlhf, tmp_path):
    (tmp_path / "other.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n}?", "chosen": "a", "rejected": "b"}) + "\n" for n in range(40))
    )
    done = rlhf("sample", "ppo", "--choose", "deltaucb", "--set", f"data.comparisons={tmp_path / 'other.jsonl'}")
    assert done.returncode == 0, done.stderr
    assert "data.comparisons of this recipe are not those from which rm@v1 learnt: how unsure it is, is measured by these" in done.stdout


def test_the_reward_model_that_chooses_is_the_one_from_which_the_policy_learnt_and_no_other_of_its_number(publish, store, recipe_path):
    recipe, model = load_recipe(recipe_path, ["sample.choose=deltaucb"]), publish(store, "rm")
    parents = [{"ref": model.ref, "content_id": model.content_id}, {"ref": model.ref, "content_id": "0" * 64}]
    own, other = (publish(store, "ppo", {"n": str(n).encode()}, parents=[parent]) for n, parent in enumerate(parents))
    assert find_chooser(recipe, store, [own], verify=True).ref == "rm@v1"
    with pytest.raises(
        StoreError, match=r"found rm@v1 with another content than that from which the policy learnt; needed the same"
    ) as refused:
        find_chooser(recipe, store, [other], verify=False)
    assert refused.value.exit_code == EXIT_VERIFICATION
