"""Rewards, advantages, whitening, kl_coef: numbers worked by hand, and slow implementations written another way."""

import math

import pytest
import torch

from stages.ppo.advantages import adapt_kl_coef, estimate_advantages, explain_variance, penalize_kl, scale_by_std, whiten


def one_rank(tensor):
    return tensor


LENGTHS = [3, 1, 5, 4]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[position < length for position in range(5)] for length in LENGTHS])
    # Outside the mask lies rubbish on purpose: whoever reads it gets a wrong number.
    return {name: torch.randn(4, 5, generator=generator).masked_fill(~mask, 99.0) for name in ("rewards", "values", "logprobs", "ref")} | {
        "mask": mask,
        "scores": torch.tensor([1.0, -2.0, 0.5, 3.0]),
    }


def test_reward_of_a_three_token_answer_is_the_penalty_on_each_token_and_the_score_once_on_the_last():
    # kl_coef 0.1; log ratios 0.5, -1, 2 -> penalties -0.05, +0.1, -0.2; the score 3 joins the last real token, not the padding.
    rewards = penalize_kl(
        torch.tensor([3.0]),
        torch.tensor([[-1.0, -2.0, -1.0, 7.0]]),
        torch.tensor([[-1.5, -1.0, -3.0, 5.0]]),
        torch.tensor([[True, True, True, False]]),
        kl_coef=0.1,
    )
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.1, 2.8, 0.0]]))


def test_the_score_is_added_exactly_once_whatever_the_length(batch):
    rewards = penalize_kl(batch["scores"], batch["logprobs"], batch["ref"], batch["mask"], kl_coef=0.0)
    torch.testing.assert_close(rewards.sum(dim=1), batch["scores"])
    assert [row.nonzero().flatten().tolist() for row in rewards] == [[length - 1] for length in LENGTHS]


def test_a_policy_that_left_the_reference_is_penalised_and_not_paid():
    # More likely under the policy than under the reference: KL positive, reward negative. A flipped sign pays for drifting.
    rewards = penalize_kl(torch.zeros(1), torch.tensor([[-0.1]]), torch.tensor([[-2.0]]), torch.tensor([[True]]), kl_coef=1.0)
    assert rewards.item() == pytest.approx(-1.9)


def test_gae_of_a_three_token_answer_by_hand():
    # gamma 0.5, lambda 0.5; rewards 1, 0, 4; values 2, 1, 3; then the end (value 0).
    # delta: 1 + 0.5*1 - 2 = -0.5;  0 + 0.5*3 - 1 = 0.5;  4 + 0 - 3 = 1
    # A: 1;  0.5 + 0.25*1 = 0.75;  -0.5 + 0.25*0.75 = -0.3125
    advantages_BR, returns_BR = estimate_advantages(
        torch.tensor([[1.0, 0.0, 4.0, 50.0]]),
        torch.tensor([[2.0, 1.0, 3.0, 60.0]]),
        torch.tensor([[True, True, True, False]]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    torch.testing.assert_close(advantages_BR, torch.tensor([[-0.3125, 0.75, 1.0, 0.0]]))
    torch.testing.assert_close(returns_BR, torch.tensor([[1.6875, 1.75, 4.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_equals_the_double_sum_of_discounted_errors(batch, gamma, gae_lambda):
    advantages_BR, returns_BR = estimate_advantages(batch["rewards"], batch["values"], batch["mask"], gamma, gae_lambda)
    for row, length in enumerate(LENGTHS):
        rewards = batch["rewards"][row, :length].tolist()
        values = [*batch["values"][row, :length].tolist(), 0.0]
        for t in range(length):
            # Schulman et al. 2016, eq. 16 as it stands: a sum over all later errors.
            expected = sum((gamma * gae_lambda) ** (s - t) * (rewards[s] + gamma * values[s + 1] - values[s]) for s in range(t, length))
            assert advantages_BR[row, t].item() == pytest.approx(expected, abs=1e-5)
            assert returns_BR[row, t].item() == pytest.approx(expected + values[t], abs=1e-5)
        assert not advantages_BR[row, length:].any()
        assert not returns_BR[row, length:].any()


def test_with_lambda_and_gamma_one_the_return_is_the_sum_of_the_rewards_to_come(batch):
    _, returns_BR = estimate_advantages(batch["rewards"], batch["values"], batch["mask"], 1.0, 1.0)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            assert returns_BR[row, t].item() == pytest.approx(batch["rewards"][row, t:length].sum().item(), abs=1e-5)


def test_advantages_stay_float32_from_bfloat16_inputs(batch):
    advantages_BR, returns_BR = estimate_advantages(batch["rewards"].bfloat16(), batch["values"].bfloat16(), batch["mask"], 1.0, 0.95)
    assert advantages_BR.dtype == returns_BR.dtype == torch.float32


def test_whitening_by_hand_does_not_add_the_mean_back():
    # Real tokens 1, 2, 3, 6: mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5.
    values = torch.tensor([[1.0, 2.0, 77.0], [3.0, 6.0, -77.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    root = math.sqrt(3.5)
    torch.testing.assert_close(whiten(values, mask, one_rank), torch.tensor([[-2 / root, -1 / root, 0.0], [0.0, 3 / root, 0.0]]))


def test_scaling_rewards_by_hand_shifts_nothing():
    values = torch.tensor([[1.0, 2.0, 77.0], [3.0, 6.0, -77.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    root = math.sqrt(3.5)
    torch.testing.assert_close(scale_by_std(values, mask, one_rank), torch.tensor([[1 / root, 2 / root, 0.0], [3 / root, 6 / root, 0.0]]))


def test_a_reward_of_zero_stays_zero_when_rewards_are_scaled():
    values = torch.tensor([[0.0, 0.0, 5.0]])
    assert scale_by_std(values, torch.ones(1, 3, dtype=torch.bool), one_rank)[0, :2].tolist() == [0.0, 0.0]


def test_two_ranks_whiten_over_the_tokens_of_both(batch):
    values, mask = batch["values"], batch["mask"]
    together = whiten(values, mask, one_rank)
    # Two ranks in lockstep: each sum is exchanged by hand. Unequal token counts (4 and 9), so a mean of means would differ.
    halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    sums = sum(torch.stack([v[m].sum(), m.sum().float()]) for v, m in halves)
    squares = sum(((v[m] - sums[0] / sums[1]) ** 2).sum() for v, m in halves)
    for rank, (v, m) in enumerate(halves):
        totals = iter([sums, squares])
        apart = whiten(v, m, lambda _, totals=totals: next(totals))
        torch.testing.assert_close(apart, together[2 * rank : 2 * rank + 2])


def test_explained_variance_by_hand():
    # Returns 1, 2, 3, 6 (variance 3.5), residuals 1, 0, 0, 1 (mean 0.5, variance 0.25).
    returns = torch.tensor([[1.0, 2.0, 3.0, 6.0, 9.0]])
    values = torch.tensor([[0.0, 2.0, 3.0, 5.0, 0.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert explain_variance(values, returns, mask, one_rank).item() == pytest.approx(1 - 0.25 / 3.5)
    assert explain_variance(returns, returns, mask, one_rank).item() == 1.0
    assert explain_variance(values, torch.ones_like(values), mask, one_rank).item() == 0.0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 256 / 10_000)),  # 10 % over
        (60.0, 0.1 * (1 + 0.2 * 256 / 10_000)),  # the error is clipped at 20 %
        (0.0, 0.1 * (1 - 0.2 * 256 / 10_000)),
    ],
)
def test_kl_coef_follows_ziegler_by_hand(kl, expected):
    assert adapt_kl_coef(0.1, kl, kl_target=6.0, num_responses=256, kl_horizon=10_000) == pytest.approx(expected, rel=1e-12)
