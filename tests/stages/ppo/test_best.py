"""`ppo.publish: best`: which iteration is published, and that it is that one to the last bit."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stages.blocks import LoRASettings
from stages.ppo.best import find_candidate, measure
from stages.process.best import Candidate, _drop_superseded, choose, require_held
from stages.process.errors import StageError
from stages.settings import PPOSettings

# A step size at which the policy first gains and then breaks: of six iterations the last is not the best.
BREAKS = {"iterations": 6, "eval_every": 1, "save_every": 2, "keep_every": 1, "learning_rate": 3e-2, "publish": "best"}


def settings(**values):
    return PPOSettings(iterations=100, publish="best", **values)


def figures(score, kl, way="sampled", **more):
    return {f"eval/{way}/score": score, f"eval/{way}/kl": kl} | {f"eval/{way}/{name}": value for name, value in more.items()}


def best_of(values, history):
    best = None
    for iteration, each in history.items():
        best = choose(best, find_candidate(values, iteration, each))
    return best and best.step


def test_the_highest_score_within_the_bound_is_best_and_of_equal_ones_the_earlier():
    history = {10: figures(1.0, 1.0), 20: figures(2.0, 4.0), 30: figures(2.0, 3.0), 40: figures(3.0, 9.0), 50: figures(1.5, 4.5)}
    assert best_of(settings(), history) == 40
    assert best_of(settings(publish_max_kl=4.0), history) == 20  # a bound is within
    assert best_of(settings(publish_max_kl=3.5), history) == 30
    assert best_of(settings(publish_max_kl=0.5), history) is None
    assert best_of(PPOSettings(iterations=100), history) is None


def test_the_judge_decides_where_it_is_asked_and_an_iteration_that_it_did_not_judge_is_none():
    history = {10: figures(1.0, 1.0, judge_score=0.5), 20: figures(2.0, 2.0, judge_score=0.1), 30: figures(3.0, 3.0)}
    assert best_of(settings(publish_by="judge"), history) == 10
    assert find_candidate(settings(publish_by="judge"), 30, history[30]) is None


def test_where_weights_are_averaged_the_average_is_what_is_judged():
    both = figures(5.0, 5.0) | figures(1.0, 2.0, "ema_sampled")
    assert find_candidate(settings(ema_decay=0.9, publish_max_kl=3.0), 10, both) == Candidate(10, 1.0)


def test_figures_that_are_not_finite_are_never_best():
    assert find_candidate(settings(), 10, figures(math.nan, 1.0)) is None
    assert find_candidate(settings(), 10, figures(1.0, math.nan)) is None
    assert find_candidate(settings(), 10, {}) is None


def test_what_cannot_choose_is_refused_with_the_recipe():
    with pytest.raises(ValidationError, match="publish = best needs held-out answers"):
        settings(eval_samples=0)
    with pytest.raises(ValidationError, match="publish = best has only the last iteration to choose from"):
        settings(eval_every=100)


def test_a_best_stays_until_no_checkpoint_goes_on_from_it(tmp_path):
    for iteration in (10, 20, 30, 40):
        (tmp_path / "best" / str(iteration)).mkdir(parents=True)
    for step in (25, 35):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "COMPLETE.json").touch()
    (tmp_path / "checkpoint-15").mkdir()  # never finished: nobody goes on from it
    _drop_superseded(tmp_path)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"20", "30"}  # 40 gives way to what is about to be held


def test_a_checkpoint_whose_best_is_gone_is_refused(tmp_path):
    context = SimpleNamespace(spec=SimpleNamespace(checkpoint_dir=tmp_path))
    require_held(context, None)
    with pytest.raises(StageError, match=r"best/20: found nothing") as caught:
        require_held(context, Candidate(20, 1.0))
    assert caught.value.exit_code == 5


def test_room_is_asked_for_as_many_as_can_lie_there_at_once(tmp_path):
    context = SimpleNamespace(spec=SimpleNamespace(checkpoint_dir=tmp_path))

    def count(iteration, **values):
        trainer = SimpleNamespace(settings=PPOSettings(iterations=100, **values), iteration=iteration)
        return measure(context, trainer, 2**20) / 2**20

    assert count(0) == 0
    assert 3 <= count(0, publish="best", eval_every=10) < 3.1
    assert 1 <= count(80, publish="best", eval_every=10) < 1.1  # at 90: the last is published from memory
    (tmp_path / "best" / "60").mkdir(parents=True)
    assert 2 <= count(60, publish="best", eval_every=10) < 2.1


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.5, "lora": LoRASettings(rank=4, merge=True)}], ids=["full", "lora-average"])
def test_the_published_model_its_figures_and_samples_are_those_of_the_best_iteration(run, more):
    spec, result, trainer = run(**BREAKS, **more)
    rows = {row["step"]: row for row in map(json.loads, (spec.checkpoint_dir / "metrics.jsonl").read_text().splitlines())}
    way = "ema_sampled" if more else "sampled"
    best = max(range(1, 7), key=lambda step: rows[step][f"eval/{way}/score"])
    assert best < 6, "the last is best: this says nothing"
    assert result.metrics["published/iteration"] == best == trainer.iteration
    file = "adapter_model.safetensors" if more else "model.safetensors"
    published, then = load_file(spec.output_dir / "model" / file), load_file(spec.output_dir / "kept" / str(best) / file)
    last = load_file(spec.output_dir / "kept" / "6" / file)
    assert all(torch.equal(published[name], then[name]) for name in then)
    assert any(not torch.equal(published[name], last[name]) for name in last)
    assert (spec.output_dir / "merged").is_dir() == bool(more)
    for name, value in rows[best].items():
        if name.startswith("eval/"):
            assert result.metrics[name] == value, name
    assert rows[6][f"eval/{way}/score"] < result.metrics[f"eval/{way}/score"]  # the last row is still of the last
    samples = [json.loads(line) for line in (spec.output_dir / "samples.jsonl").read_text().splitlines()]
    scores = [row["score"] for row in samples if row["way"] == way]
    assert sum(scores) / len(scores) == pytest.approx(rows[best][f"eval/{way}/score"])
    assert not list(spec.output_dir.glob("best"))


@pytest.mark.slow
def test_where_no_iteration_is_within_the_bound_the_last_is_published_and_a_warning_says_so(run):
    spec, result, _ = run(iterations=2, eval_every=1, publish="best", publish_max_kl=1e-9, learning_rate=1e-2)
    assert result.metrics["published/iteration"] == 2
    told = [event for event in map(json.loads, spec.events_path.read_text().splitlines()) if event["event"] == "warning"]
    (warning,) = [event["message"] for event in told if event["name"] == "publish"]
    assert "at a KL within ppo.publish_max_kl = 1e-09: the last, 2 (KL " in warning


@pytest.mark.slow
def test_a_bound_that_nothing_uses_is_told(run):
    spec, result, _ = run(iterations=1, publish_max_kl=3.0, publish_by="judge")
    assert result.metrics["published/iteration"] == 1
    assert "ppo.publish_max_kl = 3 is not used" in spec.events_path.read_text()
    assert "ppo.publish_by = judge is not used" in spec.events_path.read_text()
