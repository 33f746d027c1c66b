"""The embedded demo, whole and as shipped: each stage must learn what the README says it learns."""

import os
import subprocess
import sys

import pytest

from pipeline.store.store import Store
from stages.evaluate.results import read_evaluation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def store(tmp_path_factory, warm_start):
    """The store that `make pipeline` leaves, from the command that it runs."""
    root = tmp_path_factory.mktemp("demo_store")
    changes = os.environ.get("RLHF_TEST_DEMO", "").split()  # such as hardware.device=cuda, by `make gpu-check`
    environment = None if changes else warm_start()  # which has the imports of a stage on a CPU
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "run",
        "demo",
        "--store",
        str(root),
        *(word for each in changes for word in ("--set", each)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Store(root)


def test_four_verified_artifacts_form_one_chain(store):
    assert [(a.ref, store.verify(a.ref)) for a in store.list()] == [(f"{kind}@v1", []) for kind in ("evaluation", "ppo", "rm", "sft")]
    assert {parent.ref for parent in store.get("evaluation").manifest.parents} == {"sft@v1", "rm@v1", "ppo@v1"}
    assert {parent.ref for parent in store.get("ppo").manifest.parents} == {"sft@v1", "rm@v1"}


def test_sft_learns_the_demonstrations(store):
    assert store.get("sft").manifest.metrics["eval/loss"] <= 0.40


def test_the_reward_model_ranks_held_out_answers(store):
    metrics = store.get("rm").manifest.metrics
    assert metrics["eval/accuracy"] >= 0.78
    # Answers further apart are easier to tell apart.
    assert metrics["eval/accuracy_rank_distance_3"] > metrics["eval/accuracy_rank_distance_1"]
    assert metrics["eval/calibration_error"] < 0.1 and abs(metrics["eval/length_correlation"]) < 0.3


def test_ppo_is_better_by_a_rule_that_training_never_saw(store):
    metrics = store.get("ppo").manifest.metrics
    assert metrics["eval/sampled/judge_score"] >= 75
    assert metrics["eval/sampled/judge_score"] >= metrics["eval/start/judge_score"] + 25
    assert metrics["eval/greedy/judge_score"] >= 85
    assert metrics["eval/sampled/judge_fact"] >= 0.87
    assert metrics["eval/sampled/finished"] >= 0.98
    assert metrics["eval/sampled/judge_rude"] <= 0.03


def test_ppo_stays_near_the_sft_model(store):
    metrics = store.get("ppo").manifest.metrics
    assert metrics["eval/start/kl"] == 0.0
    assert 2 <= metrics["eval/sampled/kl"] <= 9


def test_a_healthy_run_warns_of_nothing(store):
    assert {artifact.kind: artifact.manifest.warnings for artifact in store.list()} == {"sft": [], "rm": [], "ppo": [], "evaluation": []}


def test_the_evaluation_says_that_ppo_is_better_than_sft_and_how_sure_that_is(store):
    evaluation = read_evaluation(store.get("evaluation").path)
    first = evaluation.comparisons[0]
    assert (first.a, first.b, first.way, first.by) == ("sft", "ppo", "sampled", "judge")
    assert first.win_rate.estimate.value >= 0.75 and first.win_rate.estimate.low > 0.6
    assert first.length_controlled.low > 0.6
    assert evaluation.prompts == 128 == first.win_rate.estimate.num_clusters
    said = {(found.model, found.way) for found in evaluation.answers}
    assert said >= {(model, way) for model in ("base", "sft", "ppo") for way in ("sampled", "greedy")}


def test_the_evaluation_lists_what_the_reward_model_does_not_see(store):
    card = read_evaluation(store.get("evaluation").path).reward_card
    probes = {probe.name: probe for probe in card.probes}
    assert probes["rude"].accuracy.value >= 0.95 and not probes["rude"].blind
    assert probes["name"].accuracy.value <= 0.8  # this tiny model learns late or never to compare what is copied from the prompt
    assert any(probe.accuracy.value < 0.8 for probe in card.probes)
    assert 0.75 <= card.accuracy.low < card.accuracy.high <= 0.87


def test_the_evaluation_follows_score_and_judge_through_ppo(store):
    found = read_evaluation(store.get("evaluation").path).over_optimisation
    assert [point.iteration for point in found.curve] == [0, 10, 20, 30, 40, 50, 60]
    assert found.curve[0].kl == 0 and all(2 <= point.kl <= 9 for point in found.curve[1:])
    assert found.curve[-1].judge.value >= found.curve[0].judge.value + 25
    assert found.stop_iteration >= 30 and found.over_optimised is False
    assert [best.n for best in found.best_of_n] == [1, 4, 16]
