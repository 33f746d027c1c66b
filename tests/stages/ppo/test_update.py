"""The update: token mean over the global minibatch, accumulation, permutations, early stop, learning rates."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from stages.ppo.budget import TokenBudget
from stages.ppo.learner import compute_lr_factor
from stages.ppo.losses import compute_policy_losses, compute_value_losses
from stages.ppo.update import Updater, draw_minibatches
from stages.responses.figures import evaluate_tokens


def gradients(tiny, ranks, experience, max_tokens=20, **changes):
    model = tiny.both()
    updater = Updater(ranks, *tiny.learners(model, ranks), tiny.rules(**changes), TokenBudget(20))
    sums, _ = updater.accumulate_gradients(experience, max_tokens)
    return {name: parameter.grad for name, parameter in model.named_parameters()}, sums


@pytest.mark.parametrize("max_tokens", [1, 14, 30, 50])
def test_eight_micro_batches_of_one_give_the_gradient_of_one_of_eight(tiny, ranks, max_tokens):
    whole, whole_sums = gradients(tiny, ranks, tiny.experience(), max_tokens=1000)
    parts, part_sums = gradients(tiny, ranks, tiny.experience(), max_tokens=max_tokens)
    assert max(gradient.abs().max().item() for gradient in whole.values()) > 1e-2
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    torch.testing.assert_close(part_sums, whole_sums, atol=1e-4, rtol=1e-5)


def test_the_gradient_is_that_of_the_mean_over_all_real_tokens_written_as_a_loop(tiny, ranks):
    experience = tiny.experience()
    found, _ = gradients(tiny, ranks, experience, max_tokens=30)
    model = tiny.both()
    total, tokens = 0.0, 0
    for row in range(8):
        prompt = experience.prompt_ids_BP[row][experience.prompt_mask_BP[row]].tolist()
        response = experience.response_ids_BR[row][experience.response_mask_BR[row]].tolist()
        for t, token in enumerate(response):
            state = torch.tensor([prompt + response[:t]])
            logprob = model.policy(input_ids=state).logits[0, -1].log_softmax(-1)[token]
            ratio = (logprob - experience.old_logprobs_BR[row, t]).exp()
            advantage = experience.advantages_BR[row, t]
            total = total - torch.min(advantage * ratio, advantage * ratio.clamp(0.8, 1.2))
            value = model.critic.head(model.critic.backbone(input_ids=state).last_hidden_state[0, -1])[0]
            old, target = experience.old_values_BR[row, t], experience.returns_BR[row, t]
            near = torch.clamp(value, old - 0.2, old + 0.2)
            total = total + 0.5 * 0.5 * torch.max((value - target) ** 2, (near - target) ** 2)
            tokens += 1
    (total / tokens).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=2e-6, rtol=1e-4, msg=name)


def test_policy_and_critic_send_no_gradient_into_each_other(tiny, ranks):
    without_values, _ = gradients(tiny, ranks, tiny.experience(), value_coef=0.0)
    with_values, _ = gradients(tiny, ranks, tiny.experience(), value_coef=0.5)
    for name, gradient in without_values.items():
        if name.startswith("critic."):
            assert not gradient.any() and with_values[name].any(), name
        else:
            torch.testing.assert_close(gradient, with_values[name], atol=0, rtol=0)


def test_each_epoch_visits_every_response_once_in_a_fresh_order(tiny):
    minibatches = draw_minibatches(8, tiny.rules(ppo_epochs=3, minibatch_size=4), seed=0)
    assert [len(rows) for rows in minibatches] == [4] * 6
    epochs = [torch.cat(minibatches[start : start + 2]).tolist() for start in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [rows.tolist() for rows in draw_minibatches(8, tiny.rules(ppo_epochs=3), seed=1)] != [rows.tolist() for rows in minibatches]


def run_update(tiny, ranks, learning_rate=1e-2, max_grad_norm=1e9, **changes):
    model = tiny.both()
    learners = tiny.learners(model, ranks, learning_rate, max_grad_norm)
    before = copy.deepcopy(model.state_dict())
    stats = Updater(ranks, *learners, tiny.rules(**changes), TokenBudget(20)).update(tiny.experience(), 0)
    moved = {name: (model.state_dict()[name] - value).norm().item() for name, value in before.items()}
    return stats, moved


def test_one_optimizer_step_is_made_per_minibatch(tiny, ranks):
    stats, _ = run_update(tiny, ranks)
    assert stats.optimizer_steps == 4


def test_early_stop_ends_the_epochs_before_the_step_that_goes_too_far(tiny, ranks):
    stats, moved = run_update(tiny, ranks, early_stop_kl=1e-9)
    assert stats.optimizer_steps == 0
    assert not any(moved.values())
    patient, _ = run_update(tiny, ranks, early_stop_kl=1e9)
    assert patient.optimizer_steps == 4


def test_early_stop_keeps_and_counts_the_steps_that_were_done(tiny, ranks):
    """The first minibatch finds KL 0 and is stepped on; the second finds what that step did, and ends the update."""
    model, experience = tiny.both(), tiny.experience()
    figures = evaluate_tokens(model.actor, model.critic, model.actor, experience, 1.0, experience.split(1000))
    experience = replace(experience, old_logprobs_BR=figures.logprobs_BR)

    def run(**changes):
        model = tiny.both()
        actor, critic = tiny.learners(model, ranks)
        calls = []
        critic.optimizer.register_step_post_hook(lambda *_: calls.append(copy.deepcopy(model.state_dict())))
        stats = Updater(ranks, actor, critic, tiny.rules(**changes), TokenBudget(20)).update(experience, 0)
        assert stats.optimizer_steps == len(calls)
        return model, calls

    _, all_steps = run()
    stopped, steps = run(early_stop_kl=1e-6)
    assert (len(all_steps), len(steps)) == (4, 1)
    for name, value in stopped.state_dict().items():
        assert torch.equal(value, all_steps[0][name]), name
    assert all(parameter.grad is None for parameter in stopped.parameters())


def test_policy_and_critic_are_clipped_apart(tiny, ranks):
    """A huge value error must not shrink the policy's step."""
    options = {"ppo_epochs": 1, "minibatch_size": 8, "learning_rate": 1.0, "max_grad_norm": 1e-3}
    _, calm = run_update(tiny, ranks, value_coef=0.5, **options)
    _, wild = run_update(tiny, ranks, value_coef=1e6, **options)

    def length(moved, part):
        return math.sqrt(sum(value**2 for name, value in moved.items() if name.startswith(part) and "lm_head" not in name))

    assert length(calm, "actor.") == pytest.approx(length(wild, "actor."), rel=1e-3) == pytest.approx(1e-3, rel=1e-2)
    assert length(wild, "critic.") == pytest.approx(1e-3, rel=1e-2)


def test_stats_are_means_over_all_tokens(tiny, ranks):
    experience = tiny.experience()
    model = tiny.both()
    real = experience.response_mask_BR
    logprobs, values = torch.zeros(real.shape), torch.zeros(real.shape)
    with torch.no_grad():
        for row in range(len(real)):
            ids = experience.input_ids_BT[row][torch.cat([experience.prompt_mask_BP[row], real[row]])]
            count = int(real[row].sum())
            chosen = model.policy(input_ids=ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
            logprobs[row, :count] = chosen[-count:]
            states = model.critic.head(model.critic.backbone(input_ids=ids[None]).last_hidden_state[0])[:-1, 0]
            values[row, :count] = states[-count:]
    log_ratio = (logprobs - experience.old_logprobs_BR)[real]
    stats, _ = run_update(tiny, ranks, learning_rate=0.0)
    assert stats.approxkl == pytest.approx((log_ratio**2).mean().item() / 2, rel=1e-4)
    assert stats.ratio == pytest.approx(log_ratio.exp().mean().item(), rel=1e-4)
    assert stats.ratio_var == pytest.approx(log_ratio.exp().var(correction=0).item(), rel=1e-3)
    residual, far = (values - experience.returns_BR)[real], (values - experience.old_values_BR)[real].abs() > 0.2
    assert stats.value_loss >= (residual**2).mean().item() / 2
    assert 0 < stats.value_clipfrac <= far.float().mean().item()
    assert 0 < stats.start_deviation <= log_ratio.abs().max().item() + 1e-5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_learning_rate_by_hand(schedule, expected):
    """Six iterations, two of them warm-up, down to a tenth."""
    found = [compute_lr_factor(iteration, 6, 2, schedule, 0.1) for iteration in range(6)]
    assert found == pytest.approx(expected)


def test_the_critics_activations_come_when_the_policys_are_gone(tiny, ranks):
    """Memory of one model at a time; the gradients are those of one backward pass."""
    model, experience, rules = tiny.both(), tiny.experience(), tiny.rules()
    order = []
    model.policy.get_output_embeddings().register_full_backward_hook(lambda *_: order.append("policy backward"))
    model.critic.register_forward_pre_hook(lambda *_: order.append("critic forward"))
    Updater(ranks, *tiny.learners(model, ranks), rules, TokenBudget(20)).accumulate_gradients(experience, 1000)
    assert order == ["policy backward", "critic forward"]

    at_once = tiny.both()
    row, predictors = experience.pack()
    mask = experience.response_mask_BR
    logprobs, values = experience.unpack(at_once.actor(row, predictors, 1.0)[0]), experience.unpack(at_once.critic(row, predictors))
    loss = compute_policy_losses(logprobs, experience.old_logprobs_BR, experience.advantages_BR, mask, rules.clip_range).sum()
    value_loss = compute_value_losses(values, experience.old_values_BR, experience.returns_BR, mask, rules.value_clip_range).sum()
    ((loss + rules.value_coef * value_loss) / mask.sum()).backward()
    for one, other in zip(model.parameters(), at_once.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-7, rtol=1e-5)
