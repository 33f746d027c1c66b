"""Rules on scores: scale by the running moments, clip, replace the unfinished."""

import pytest
import torch

from stages.ppo.score_rules import RunningMoments, apply_score_rules


def one_rank(tensor):
    return tensor


def test_rules_by_hand_scale_then_clip_then_replace_the_unfinished():
    scores, finished = torch.tensor([6.0, -1.0, 2.0, 9.0]), torch.tensor([True, True, False, False])
    found = apply_score_rules(scores, finished, scale=2.0, score_clip=1.5, missing_eos_score=-4.0)
    assert found.tolist() == [1.5, -0.5, -4.0, -4.0]


def test_without_rules_scores_pass_through_unfinished_or_not():
    scores = torch.tensor([6.0, -1.0])
    found = apply_score_rules(scores, torch.tensor([True, False]), scale=1.0, score_clip=None, missing_eos_score=None)
    assert found.tolist() == [6.0, -1.0]


def test_running_moments_equal_those_of_all_scores_at_once():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, generator=generator) * 3 + 100 for size in (5, 1, 8)]
    moments = RunningMoments()
    assert moments.std == 1.0
    for batch in batches:
        moments.update(batch, one_rank)
    everything = torch.cat(batches).double()
    assert moments.mean == pytest.approx(everything.mean().item(), rel=1e-9)
    assert moments.std == pytest.approx(everything.std(correction=0).item(), rel=1e-6)


def test_running_moments_by_hand_over_two_ranks():
    # This rank has 1 and 3, the other 8: mean 4, squares 9 + 1 + 16, std sqrt(26/3).
    other_rank = iter([torch.tensor([1.0, 8.0], dtype=torch.float64), torch.tensor(16.0, dtype=torch.float64)])
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 3.0]), lambda local: local + next(other_rank))
    assert (moments.count, moments.mean) == (3, 4)
    assert moments.std == pytest.approx((26 / 3) ** 0.5)


def test_equal_scores_are_not_divided_by_nothing():
    moments = RunningMoments()
    moments.update(torch.full((4,), 2.0), one_rank)
    assert moments.std == 1.0
