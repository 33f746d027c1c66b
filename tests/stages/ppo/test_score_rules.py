"""Rules on scores: scale by the running moments, clip, replace the unfinished."""

import pytest
import torch

from stages.ppo.score_rules import RunningMoments, apply_score_rules, penalize_unfinished


def one_rank(tensor):
    return tensor


def test_rules_by_hand_scale_then_clip_then_what_is_unfinished():
    scores, finished = torch.tensor([6.0, -1.0, 2.0, 9.0]), torch.tensor([True, True, False, False])
    found = apply_score_rules(scores, finished, one_rank, scale=2.0, score_clip=1.5, missing_eos_score=-4.0)
    assert found.tolist() == [1.5, -0.5, -4.0, -4.0]  # the finished ones' mean is 0.5: 4 less is no lower than -4


def test_without_rules_scores_pass_through_unfinished_or_not():
    scores = torch.tensor([6.0, -1.0])
    found = apply_score_rules(scores, torch.tensor([True, False]), one_rank, scale=1.0, score_clip=None, missing_eos_score=None)
    assert found.tolist() == [6.0, -1.0]


def test_unfinished_by_hand():
    finished = torch.tensor([True, True, False, False, False])
    for scores, expected in [
        ([1.0, 3.0, 5.0, -0.5, -9.0], [-1.0, -1.0, -9.0]),  # the fixed score, and an own one below it
        ([-7.0, -5.0, 5.0, -3.0, -8.0], [-7.0, -7.0, -8.0]),  # answers score -6: 1 less than that
    ]:
        found = penalize_unfinished(torch.tensor(scores), finished, -1.0, one_rank)
        assert found.tolist() == [*scores[:2], *expected]
    none_finished = penalize_unfinished(torch.tensor([2.0, -3.0]), torch.tensor([False, False]), -1.0, one_rank)
    assert none_finished.tolist() == [-1.0, -3.0]
    # 4 and 0 on another rank: the mean of the finished is -2, also where the given score is none at all.
    two_ranks = penalize_unfinished(
        torch.tensor([-7.0, -5.0, 5.0]), torch.tensor([True, True, False]), 9.0, lambda sums: sums + torch.tensor([4.0, 2.0])
    )
    assert two_ranks.tolist() == [-7.0, -5.0, -2.0]


def test_not_to_end_never_pays():
    """Whatever the reward model says, the unfinished score less than the finished on average, by the penalty."""
    generator = torch.Generator().manual_seed(1)
    for level in (-20.0, -2.0, 0.0, 3.0):
        for penalty in (-3.0, -0.5, 0.0, 2.0):
            scores = torch.randn(64, generator=generator) * 3 + level
            finished = torch.rand(64, generator=generator) < 0.5
            found = penalize_unfinished(scores, finished, penalty, one_rank)
            assert torch.equal(found[finished], scores[finished])
            assert found[~finished].max() <= scores[finished].mean() + min(penalty, 0.0) + 1e-5
            assert (found <= scores).all() and found[~finished].max() <= penalty


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


@pytest.mark.parametrize("level", [0.0, 2.0, 1e4])
def test_scores_that_differ_by_rounding_only_are_not_divided_by_it(level):
    moments = RunningMoments()
    moments.update(torch.full((4,), level), one_rank)
    assert moments.std == 1.0
    moments.update(level + torch.tensor([0.0, 1.0, 0.0, 2.0]) * torch.finfo(torch.float32).eps * max(level, 1.0), one_rank)
    assert moments.std == 1.0
    moments.update(level + torch.tensor([-8.0, 8.0]), one_rank)
    assert moments.std == pytest.approx((128 / 10) ** 0.5, rel=1e-3)
