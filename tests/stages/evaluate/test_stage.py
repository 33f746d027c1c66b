"""The whole stage on tiny models: what it finds, what it says is missing, killed and in two processes."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.evaluate.results import read_evaluation
from stages.evaluate.stage import main
from stages.models.tokenizer import load_tokenizer
from stages.process.context import StageContext
from tests.stages.family_models import save_with_tokenizer

pytestmark = pytest.mark.slow  # 2 s each


@pytest.fixture(scope="module")
def ppo_dir(base_model_dir, tmp_path_factory):
    """What PPO leaves: a model that moved away from SFT, one that it kept on the way, and its figures."""
    artifact = tmp_path_factory.mktemp("ppo")
    for place, noise in (("model", 0.05), ("kept/2", 0.02)):
        shutil.copytree(base_model_dir, artifact / place)
        path = artifact / place / "model.safetensors"
        weights, generator = load_file(path), torch.Generator().manual_seed(1)
        moved = {name: weight + noise * torch.randn(weight.shape, generator=generator) for name, weight in sorted(weights.items())}
        path.chmod(0o644)
        save_file(moved, path, {"format": "pt"})
    (artifact / "result.json").write_text(json.dumps({"metrics": {"published/iteration": 4}}))
    return artifact / "model"


@pytest.fixture(scope="module")
def models(base_model_dir, fresh_reward_model, ppo_dir):
    return {"base": base_model_dir, "sft": base_model_dir, "rm": fresh_reward_model, "ppo": ppo_dir}


@pytest.fixture
def evaluate(make_stage, models):
    """A function: settings -> (the evaluation, its directory), in this process."""

    def evaluate(**given):
        stage = make_stage("evaluate", models=given.pop("models", models), **given)
        for directory in (stage.spec.output_dir, stage.spec.checkpoint_dir):
            directory.mkdir()
        main(StageContext(stage.spec))
        return read_evaluation(stage.spec.output_dir), stage.spec.output_dir

    return evaluate


def test_it_answers_compares_and_follows_ppo(evaluate):
    found, output = evaluate(probes="data.demo.probes:edit")
    said = {(answers.model, answers.way): answers for answers in found.answers}
    ways = {(model, way) for model in ("base", "sft", "ppo") for way in ("sampled", "greedy")}
    assert said.keys() == ways | {("ppo-2", "sampled")}
    assert {key: answers.samples_per_prompt for key, answers in said.items() if key[1] == "sampled"} == {
        ("base", "sampled"): 2,
        ("sft", "sampled"): 4,
        ("ppo", "sampled"): 2,
        ("ppo-2", "sampled"): 2,
    }
    # The base model is the SFT model here: the same forward in the same rows says the same, to the last bit.
    assert said["base", "sampled"].kl_k1.value == said["base", "sampled"].kl_k3.value == 0.0
    assert 0 < said["ppo-2", "sampled"].kl_k3.value < said["ppo", "sampled"].kl_k3.value
    first, second = found.comparisons[:2]
    assert (first.a, first.b, first.way, first.by) == ("sft", "ppo", "sampled", "judge") and second.by == "score"
    assert first.win_rate.wins + first.win_rate.ties + first.win_rate.losses == 12
    assert [point.iteration for point in found.over_optimisation.curve] == [0, 2, 4]
    assert [best.n for best in found.over_optimisation.best_of_n] == [1, 4]
    assert found.reward_card.accuracy.num_clusters == 8 and {"rude", "empty"} <= {probe.name for probe in found.reward_card.probes}
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * (2 + 1 + 2 + 2 + 1 + 4 + 1)
    assert {"model", "way", "prompt_id", "sample_id", "prompt", "response", "finished", "score", "kl", "judge_score"} <= rows[0].keys()
    scores = [row["score"] for row in rows if (row["model"], row["way"]) == ("ppo", "sampled")]
    assert said["ppo", "sampled"].score.value == pytest.approx(sum(scores) / 12, abs=1e-9)


def test_without_a_judge_and_kept_models_it_says_what_nothing_can_tell(evaluate, models, tmp_path):
    bare = tmp_path / "imported" / "model"
    shutil.copytree(models["ppo"], bare)
    found, _ = evaluate(judge=None, models=models | {"ppo": bare}, prompts=1)
    assert found.judge is None and found.comparisons[0].by == "score"
    assert found.comparisons[0].win_rate.estimate.num_clusters == 1
    assert found.over_optimisation is None
    told = "\n".join(found.missing)
    for part in ("no judge is named", "it kept no models", "which iteration of PPO", "found 1 held-out prompts, needed 2"):
        assert part in told


def test_models_that_are_decoded_slower_are_told_once(evaluate, models, tmp_path):
    recurrent = tmp_path / "recurrent" / "model"
    config = json.loads((models["sft"] / "config.json").read_text())
    save_with_tokenizer("mamba", recurrent, load_tokenizer(str(models["sft"])), config["vocab_size"])
    _, output = evaluate(judge=None, models=models | dict.fromkeys(("base", "sft", "ppo"), recurrent), prompts=2)
    events = [json.loads(line) for line in (output.parent / "events.jsonl").read_text().splitlines()]
    (told,) = (event["message"] for event in events if event["event"] == "note" and "decoded" in event["message"])
    assert told.startswith("MambaForCausalLM does not run over our key-value cache: responses are decoded by transformers' generate")


def test_a_judge_that_fails_costs_its_figures_alone(evaluate):
    found, output = evaluate(judge="tests.stages.evaluate.broken_judge:judge")
    assert any("raised ValueError: no more" in line for line in found.missing)
    judged = [answers.model for answers in found.answers if answers.judge]
    assert judged == ["base", "base"]  # those that were judged before it failed
    assert found.comparisons[0].by == "score" and found.over_optimisation.stop_iteration is None
    assert (output / "samples.jsonl").exists()


def test_scores_that_are_no_numbers_are_left_out_and_told(evaluate, models, tmp_path):
    broken = tmp_path / "rm"
    shutil.copytree(models["rm"], broken)
    path = broken / "model.safetensors"
    weights = load_file(path)
    weights["score.weight"] = torch.full_like(weights["score.weight"], torch.nan)
    save_file(weights, path, {"format": "pt"})
    found, output = evaluate(models=models | {"rm": broken})
    assert found.reward_card is None and found.comparisons[0].by == "judge"
    assert all(answers.score is None for answers in found.answers)
    assert sum("are not finite" in line for line in found.missing) == 8
    assert "score" not in json.loads((output / "samples.jsonl").read_text().splitlines()[0])


def test_probes_that_fail_are_told_and_the_others_stand(evaluate):
    found, _ = evaluate(probes="data.demo.rule:assess")
    assert any(line.startswith("whether the reward model sees the task's own flaws: evaluate.probes: ") for line in found.missing)
    assert {"empty", "added filler"} <= {probe.name for probe in found.reward_card.probes}


def test_killed_it_goes_on_and_two_processes_find_what_one_does(make_stage, models, plain_hardware):
    straight = make_stage("evaluate", tag="straight", models=models)
    straight.run()
    killed = make_stage("evaluate", tag="killed", models=models)
    process, kept = killed.start(), killed.spec.checkpoint_dir / "evaluate"
    deadline = time.monotonic() + 100
    while not (kept / "ppo-sampled.answers.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = {path.name: path.stat().st_mtime_ns for path in kept.glob("*.npz")}
    assert before.keys() >= {"base-sampled.answers.npz", "base-greedy.answers.npz"}
    killed.run()
    assert {name: (kept / name).stat().st_mtime_ns for name in before} == before
    one = read_evaluation(straight.spec.output_dir)
    assert read_evaluation(killed.spec.output_dir) == one
    both = make_stage("evaluate", tag="both", models=models, hardware=plain_hardware.model_copy(update={"processes": 2, "engine": "ddp"}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "stages.evaluate", both.spec_path], env=both.environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = read_evaluation(both.spec.output_dir)
    assert [(c.win_rate.wins, c.win_rate.ties, c.win_rate.losses) for c in two.comparisons] == [
        (c.win_rate.wins, c.win_rate.ties, c.win_rate.losses) for c in one.comparisons
    ]
    for mine, theirs in zip(one.answers, two.answers, strict=True):
        assert mine.response_tokens == theirs.response_tokens and mine.distinct_2 == theirs.distinct_2
        assert theirs.score.value == pytest.approx(mine.score.value, abs=1e-5)
