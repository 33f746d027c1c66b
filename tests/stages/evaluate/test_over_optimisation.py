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
