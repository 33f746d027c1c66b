"""Scores: where they are read, and the rules that follow."""

import pytest
import torch

from stages.ppo.experience import pack_rollout
from stages.ppo.scoring import RunningMoments, Scorer, apply_score_rules, score_responses


def one_rank(tensor):
    return tensor


def test_the_score_is_read_at_the_last_response_token_though_pad_ids_stand_before_it(tiny, full_precision):
    """A prompt that holds the pad id and a response that sampled it: looking for the first pad would read elsewhere."""
    reward_model = tiny.reward_model()
    prompt, response = [5, tiny.pad, 6], [7, tiny.pad, 8, tiny.eos]
    mates = pack_rollout([prompt, [3] * 6], [response, [4] * 7], [True, False], tiny.pad, torch.device("cpu"))
    with torch.no_grad():
        hidden = reward_model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, -1]
        expected = (reward_model.score(hidden).item() - reward_model.config.score_bias) / reward_model.config.score_scale
    assert score_responses(Scorer(reward_model), mates, mates.split(2), full_precision)[0].item() == pytest.approx(expected, abs=1e-5)


def test_the_reward_model_sees_nothing_after_the_stop_token(tiny, full_precision):
    reward_model = tiny.reward_model()
    seen, expected = [], [5, 6, 7, tiny.eos, 9, 10, 11, 8, 8, 8]
    reward_model.model.register_forward_pre_hook(
        lambda _module, _arguments, options: seen.append(options["input_ids"][0, : len(expected)].tolist()), with_kwargs=True
    )
    rollout = pack_rollout([[5, 6], [9, 10, 11]], [[7, tiny.eos], [8, 8, 8]], [True, False], tiny.pad, torch.device("cpu"))
    score_responses(Scorer(reward_model), rollout, rollout.split(1000), full_precision)
    assert seen == [expected]


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
