"""Losses and estimators: numbers worked by hand, and slow implementations written another way."""

import math

import pytest
import torch

from stages.models.logprobs import compute_entropies, compute_logprobs
from stages.ppo.losses import compute_policy_losses, compute_value_losses, find_clipped_ratios, find_clipped_values, sum_tokens
from stages.responses.kl import estimate_kl_k1, estimate_kl_k3

REAL = torch.tensor([[True]])


def policy_loss(ratio, advantage, clip_range=0.2):
    logprob = torch.tensor([[math.log(ratio) - 1.0]], requires_grad=True)
    loss = compute_policy_losses(logprob, torch.tensor([[-1.0]]), torch.tensor([[advantage]]), REAL, clip_range)
    loss.sum().backward()
    return loss.item(), logprob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # d loss / d logprob = -A * ratio where the ratio is free, 0 where the clip holds it.
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # good and already much likelier: held at 1.2
        (0.5, 2.0, -1.0, -1.0),  # good but less likely: must be free to come back
        (0.5, -2.0, 1.6, 0.0),  # bad and already much less likely: held at 0.8
        (1.5, -2.0, 3.0, 3.0),  # bad but likelier: must be free to come back
    ],
)
def test_policy_loss_and_its_gradient_by_hand(ratio, advantage, loss, gradient):
    found_loss, found_gradient = policy_loss(ratio, advantage)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert found_gradient == pytest.approx(gradient, rel=1e-5, abs=1e-7)


def test_policy_loss_equals_a_loop_over_real_tokens():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = (torch.randn(3, 4, generator=generator) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    losses = compute_policy_losses(new, old, advantages, mask, clip_range=0.3)
    for row in range(3):
        for t in range(4):
            expected = 0.0
            if mask[row, t]:
                ratio, a = math.exp(new[row, t].item() - old[row, t].item()), advantages[row, t].item()
                expected = -min(ratio * a, min(max(ratio, 0.7), 1.3) * a)
            assert losses[row, t].item() == pytest.approx(expected, abs=1e-5)


def test_padding_sends_neither_loss_nor_gradient_even_where_it_is_infinite():
    new = torch.tensor([[-1.0, float("-inf")]], requires_grad=True)
    old = torch.tensor([[-1.2, 500.0]])
    mask = torch.tensor([[True, False]])
    losses = compute_policy_losses(new, old, torch.tensor([[1.0, 3.0]]), mask, clip_range=0.5)
    sum_tokens(losses, mask).backward()
    assert losses[0, 1].item() == 0.0
    assert new.grad.isfinite().all()
    assert new.grad[0, 1].item() == 0.0


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, -0.9),  # inside the clip
        (1.9, 1.0, 2.0, 0.5 * 0.8**2, 0.0),  # ran ahead of the clip (1.2): the clipped error is the larger one, no gradient
        (0.0, 1.0, 2.0, 0.5 * 2.0**2, -2.0),  # ran the wrong way: the unclipped error is the larger one, free to come back
    ],
)
def test_value_loss_and_its_gradient_by_hand(value, old, target, loss, gradient):
    values = torch.tensor([[value]], requires_grad=True)
    losses = compute_value_losses(values, torch.tensor([[old]]), torch.tensor([[target]]), REAL, value_clip_range=0.2)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, rel=1e-5)
    assert values.grad.item() == pytest.approx(gradient, rel=1e-5)


def test_logprobs_by_hand_divide_the_logits_by_the_temperature():
    # Logits ln 1, ln 4 at temperature 2: weights 1 and 2.
    logits = torch.tensor([[0.0, math.log(4.0)]])
    assert compute_logprobs(logits, torch.tensor([1]), temperature=2.0).item() == pytest.approx(math.log(2 / 3), rel=1e-6)
    assert compute_logprobs(logits, torch.tensor([0]), temperature=1.0).item() == pytest.approx(math.log(1 / 5), rel=1e-6)


def test_logprobs_equal_torchs_own_distribution_and_keep_float32_under_bfloat16():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 7, generator=generator) * 5
    tokens = torch.randint(0, 7, (6,), generator=generator)
    distribution = torch.distributions.Categorical(logits=logits / 0.7)
    torch.testing.assert_close(compute_logprobs(logits, tokens, 0.7), distribution.log_prob(tokens))
    torch.testing.assert_close(compute_entropies(logits, 0.7), distribution.entropy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute_logprobs(logits.bfloat16(), tokens, 0.7)
        assert compute_entropies(logits.bfloat16(), 0.7).dtype == torch.float32
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.distributions.Categorical(logits=logits.bfloat16().float() / 0.7).log_prob(tokens))


def test_kl_estimators_by_hand():
    # log ratio x = ln 2: k1 = ln 2, k3 = 1/2 - 1 + ln 2.   x = -ln 2: k1 = -ln 2, k3 = 2 - 1 - ln 2.
    new = torch.tensor([[math.log(2.0), -math.log(2.0), 9.0]])
    ref = torch.tensor([[0.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False]])
    ln2 = math.log(2.0)
    torch.testing.assert_close(estimate_kl_k1(new, ref, mask), torch.tensor([[ln2, -ln2, 0.0]]))
    torch.testing.assert_close(estimate_kl_k3(new, ref, mask), torch.tensor([[ln2 - 0.5, 1 - ln2, 0.0]]))


def test_both_kl_estimators_have_the_true_kl_as_their_mean():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    true_kl = sum(p[i] * math.log(p[i] / q[i]) for i in range(3)).item()
    mask = torch.ones(1, 3, dtype=torch.bool)
    for estimate in (estimate_kl_k1, estimate_kl_k3):
        assert (p * estimate(p.log()[None], q.log()[None], mask)[0]).sum().item() == pytest.approx(true_kl, rel=1e-5)


def test_clipped_tokens_are_those_without_gradient():
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1, 0.9]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]])
    logprobs = ratios.log().requires_grad_()
    compute_policy_losses(logprobs, torch.zeros(1, 6), advantages, torch.ones(1, 6).bool(), 0.2).sum().backward()
    assert (
        find_clipped_ratios(ratios, advantages, 0.2).tolist() == (logprobs.grad == 0).tolist() == [[True, False, False, True, False, False]]
    )


def test_clipped_values_are_those_without_gradient():
    values = torch.tensor([[1.9, 0.0, 1.1]], requires_grad=True)
    old, target = torch.ones(1, 3), torch.full((1, 3), 2.0)
    compute_value_losses(values, old, target, torch.ones(1, 3).bool(), 0.2).sum().backward()
    assert find_clipped_values(values, old, target, 0.2).tolist() == (values.grad == 0).tolist() == [[True, False, False]]
