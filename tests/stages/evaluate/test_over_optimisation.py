"""What a curve of PPO's models says of the one that was published."""

import numpy as np
import pytest

from stages.evaluate.answers import Answers
from stages.evaluate.measure import Measured
from stages.evaluate.over_optimisation import measure_over_optimisation
from stages.evaluate.subjects import Subject
from stages.statistics.frontier import share_of_frontier, trace_frontier

PROMPTS, SAMPLES = 6, 16


def make(model, samples, iteration, kl, score, judge, rng):
    size = PROMPTS * samples
    answers = Answers(ids=[[]] * size, finished_N=np.ones(size, dtype=bool), samples=samples, logprobs=None)
    return Measured(
        subject=Subject(model, "sampled", samples, "", iteration),
        answers=answers,
        texts=[""] * size,
        scores_N=score + rng.normal(0, 1, size),
        verdicts={"score": judge + rng.normal(0, 0.1, size)},
        k1_N=np.full(size, kl),
    )


def test_the_share_of_what_is_possible_is_of_what_was_published_and_not_of_the_last_that_was_kept():
    rng = np.random.default_rng(5)
    sft = make("sft", SAMPLES, None, 0.0, 0.0, 50, rng)
    published, kept = make("ppo", 4, 10, 0.2, 0.4, 80, rng), make("ppo-20", 4, 20, 40.0, 3.0, 20, rng)
    found = measure_over_optimisation({"sft-sampled": sft, "ppo-20-sampled": kept, "ppo-sampled": published})
    frontier = trace_frontier(sft.scores_N.reshape(PROMPTS, SAMPLES))
    assert [point.iteration for point in found.curve] == [0, 10, 20]
    assert found.share_of_frontier == pytest.approx(share_of_frontier(frontier, 0.2, published.scores_N.mean()))
    assert found.share_at_least is None and found.stop_iteration == 10 and found.over_optimised
    broken = make("ppo", 4, 10, 0.2, 0.4, 80, rng)
    broken.scores_N = None
    found = measure_over_optimisation({"sft-sampled": sft, "ppo-20-sampled": kept, "ppo-sampled": broken})
    assert found.share_of_frontier is None and found.share_at_least is None


def judge_equally_good_models(seed, fall=0.0):
    """SFT and 11 of PPO's models, all as good on 30 prompts, but the last by `fall` less; the score rises."""
    rng = np.random.default_rng(seed)
    prompts, size = np.repeat(rng.normal(0, 1, 30), 2), 60
    measured = {}
    for place in range(12):
        model = "sft" if place == 0 else "ppo" if place == 11 else f"ppo-{place}"
        measured[f"{model}-sampled"] = Measured(
            subject=Subject(model, "sampled", 2, "", place or None),
            answers=Answers(ids=[[]] * size, finished_N=np.ones(size, dtype=bool), samples=2, logprobs=None),
            texts=[""] * size,
            scores_N=place + rng.normal(0, 0.1, size),
            verdicts={"score": prompts + rng.normal(0, 1, size) - fall * (place == 11)},
            k1_N=np.full(size, float(place)),
        )
    return measured


def test_of_equally_good_models_it_is_said_in_5_percent_of_cases_that_the_judge_fell_however_many_there_are():
    """The highest of twelve is picked by its luck: the last lies below it by more than a paired interval far more often."""
    told, by_pair = 0, 0
    for seed in range(80):
        measured = judge_equally_good_models(seed)
        found = measure_over_optimisation(measured)
        assert found.over_optimised == (11 not in found.stop_may_be)
        told += found.over_optimised
        # Independently: the paired t interval of the highest and the last, by prompt.
        judged = [each.verdicts["score"].reshape(30, 2).mean(axis=1) for each in measured.values()]
        gaps = max(judged, key=np.mean) - judged[-1]
        by_pair += gaps.mean() > 2.045 * gaps.std(ddof=1) / np.sqrt(30)
    assert by_pair >= 12
    assert told <= 9  # 4 expected; 10 or more by chance in 1 of 150 cases
    assert all(measure_over_optimisation(judge_equally_good_models(seed, fall=2.0)).over_optimised for seed in range(3))


def test_a_judge_that_fell_with_the_score_is_no_over_optimisation():
    measured = judge_equally_good_models(0, fall=2.0)
    measured["ppo-sampled"].scores_N -= 20.0
    found = measure_over_optimisation(measured)
    assert 11 not in found.stop_may_be and found.over_optimised is False
