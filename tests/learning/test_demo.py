"""The embedded demo, whole and as shipped: each stage must learn what the README says it learns."""

import subprocess
import sys

import pytest

from pipeline.store.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store that `make pipeline` leaves, from the command that it runs."""
    root = tmp_path_factory.mktemp("demo_store")
    command = [sys.executable, "-m", "pipeline.cli", "run", "demo", "--store", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Store(root)


def test_three_verified_artifacts_form_one_chain(store):
    assert [(a.ref, store.verify(a)) for a in store.list()] == [("ppo@v1", []), ("rm@v1", []), ("sft@v1", [])]
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
    assert {artifact.kind: artifact.manifest.warnings for artifact in store.list()} == {"sft": [], "rm": [], "ppo": []}
