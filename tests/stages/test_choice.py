"""Which answers people are shown: precision, gaps and choice, by hand and beside heads that are drawn or fitted one by one."""

import itertools
import math

import numpy as np
import pytest
import torch

from stages.choice import Evidence, choose_answers, factor_precision, measure_evidence, measure_gaps, whiten


def test_the_evidence_of_rankings_by_hand():
    # Two prompts: answers 0 and 1; answers 2 to 4, of which the last two are tied.
    states_NH = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 1.0]])
    logits_N = torch.tensor([math.log(3.0), 0.0, 0.0, 0.0, 0.0])
    found = measure_evidence(states_NH, logits_N, torch.tensor([1, 2, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 1]))
    # First prompt: z = (1, 0), p = 3/4, ω = 1. Second: z = (0, 2) and (0, 1), p = 1/2, ω = 2/3: 2/3 · 1/4 · (4 + 1).
    assert torch.allclose(found.precision_HH, torch.tensor([[3 / 16, 0.0], [0.0, 5 / 6]], dtype=torch.float64))
    assert (float(found.length), float(found.pairs)) == (6.0, 3.0)
    # λ = 6 / 3.
    factor_HH = factor_precision(found)
    assert torch.allclose(factor_HH, torch.diag(torch.tensor([2 + 3 / 16, 2 + 5 / 6], dtype=torch.float64)).sqrt())
    u_KH = whiten(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), factor_HH)
    gaps = measure_gaps(u_KH, torch.tensor([1.5, -0.5]), 2.0)
    assert gaps[0, 1] == pytest.approx(2.0 + 2.0 * math.sqrt(1 / (2 + 3 / 16) + 1 / (2 + 5 / 6)))
    assert gaps[0, 1] == gaps[1, 0] and gaps[0, 0] == gaps[1, 1] == 0


def test_two_answers_of_a_direction_that_no_comparison_shows_keep_the_whole_spread_of_the_prior():
    # All pairs differ in the first axis alone, by 2: λ = 4. The scores of a pair in the second axis, as far apart, differ by 1 nat.
    states_NH = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(500, 1)
    found = measure_evidence(states_NH, torch.zeros(1000), torch.tensor([1, 2]).repeat(500), torch.arange(500).repeat_interleave(2))
    u_KH = whiten(torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]]), factor_precision(found))
    gaps = measure_gaps(u_KH, torch.zeros(4), 1.0)
    assert gaps[0, 1] == pytest.approx(1.0)
    assert gaps[2, 3] == pytest.approx(2 / math.sqrt(4 + 500 * 4 / 4))  # 500 pairs, p (1 - p) = 1/4, |z|² = 4


def test_what_both_answers_share_counts_for_nothing():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    evidence = Evidence(torch.eye(4, dtype=torch.float64), torch.tensor(3.0).double(), torch.tensor(1.0).double())
    factor = factor_precision(evidence)
    logits = torch.tensor([0.0, 1.0, 3.0])
    moved = measure_gaps(whiten(states + 100.0, factor), logits + 7.0, 1.0)
    assert torch.allclose(moved, measure_gaps(whiten(states, factor), logits, 1.0))


def fit(differences_QH, weights_Q, prior, rounds=30):
    """A Bradley-Terry head by Newton's method, in numpy."""
    head = np.zeros(differences_QH.shape[1])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-differences_QH @ head))
        gradient = differences_QH.T @ (weights_Q * (1 - p)) - prior * head
        curvature = (differences_QH * (weights_Q * p * (1 - p))[:, None]).T @ differences_QH + prior * np.eye(len(head))
        head = head + np.linalg.solve(curvature, gradient)
    return head


def test_the_spread_in_closed_form_is_that_of_heads_fitted_on_resampled_comparisons_and_of_heads_that_are_drawn():
    generator = np.random.default_rng(3)
    truth = np.array([1.0, -0.5, 0.3])
    states = generator.normal(size=(3000, 3)) @ np.array([[1.0, 0.3, 0.0], [0.0, 0.8, -0.2], [0.0, 0.0, 1.3]])
    first_is_better = generator.random(1500) < 1 / (1 + np.exp(-(states[::2] - states[1::2]) @ truth))
    ranks = np.stack([np.where(first_is_better, 1, 2), np.where(first_is_better, 2, 1)], 1).ravel()
    z_QH = np.where(first_is_better[:, None], states[::2] - states[1::2], states[1::2] - states[::2])
    prior = float((z_QH**2).sum(1).mean())
    head = fit(z_QH, np.ones(1500), prior)
    evidence = measure_evidence(
        torch.from_numpy(states), torch.from_numpy(states @ head), torch.from_numpy(ranks), torch.arange(1500).repeat_interleave(2)
    )
    factor_HH = factor_precision(evidence)
    answers = generator.normal(size=(4, 3))
    gaps = measure_gaps(whiten(torch.from_numpy(answers), factor_HH), torch.from_numpy(answers @ head), 1.5).numpy()
    precision = (factor_HH @ factor_HH.T).numpy()
    drawn = generator.multivariate_normal(head, np.linalg.inv(precision), size=20_000) @ answers.T
    refitted = np.array([fit(z_QH, generator.multinomial(1500, np.full(1500, 1 / 1500)), prior, rounds=5) for _ in range(200)]) @ answers.T
    for one, other in itertools.combinations(range(4), 2):
        mean = abs((answers[one] - answers[other]) @ head)
        assert gaps[one, other] == pytest.approx(mean + 1.5 * np.std(drawn[:, one] - drawn[:, other]), rel=0.02)
        assert gaps[one, other] - mean == pytest.approx(1.5 * np.std(refitted[:, one] - refitted[:, other]), rel=0.2)


def test_the_pair_with_the_largest_gap_is_shown_then_what_lies_furthest_from_both():
    places = torch.tensor([0.0, 4.0, 1.0, 10.0, 9.0])
    gaps = (places[:, None] - places[None, :]).abs()
    assert choose_answers(gaps, 2) == [0, 3]
    assert choose_answers(gaps, 3) == [0, 1, 3]  # on a line all lie as far from both ends together: the first
    assert choose_answers(gaps, 5) == [0, 1, 2, 3, 4] == choose_answers(gaps, 9)
    assert choose_answers(torch.zeros(4, 4), 2) == [0, 1]  # two different ones even where nothing tells them apart


@pytest.mark.parametrize("seed", range(20))
def test_the_sum_of_gaps_is_at_least_half_of_the_best_subsets(seed):
    points = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    gaps = measure_gaps(points, points[:, 0], 1.0)
    best = max(float(gaps[list(some)][:, list(some)].sum()) for some in itertools.combinations(range(8), 4))
    chosen = choose_answers(gaps, 4)
    assert len(set(chosen)) == 4 and chosen == sorted(chosen)
    assert best / 2 <= float(gaps[chosen][:, chosen].sum()) <= best + 1e-9
