"""PPO-ptx: the gradient of demonstrations, what is drawn, and that off means off."""

import pytest
import torch

from data.tokens import EncodedPair
from stages.ppo.budget import TokenBudget
from stages.ppo.ptx import DemonstrationSampler, accumulate_ptx_gradients
from stages.ppo.update import Updater

# The temperature is that of the rollouts: the likelihood of demonstrations is that of the model itself.
RULES = {"ppo_epochs": 1, "minibatch_size": 8, "temperature": 0.7, "ptx_coef": 3.0}
BUDGET = TokenBudget(1000)


@pytest.mark.parametrize("max_tokens", [1, 9, 1000])
def test_the_gradient_is_that_of_plain_forwards_one_token_after_the_other(tiny, ranks, max_tokens):
    pairs = tiny.demonstrations(5)
    model, plain = tiny.both(), tiny.both()
    actor, _ = tiny.learners(model, ranks)
    drawn = DemonstrationSampler(pairs, 5, tiny.pad, seed=0).draw(ranks)
    found = accumulate_ptx_gradients(ranks, actor, drawn, 3.0, max_tokens)
    losses = []
    for pair in pairs:
        for t, token in enumerate(pair.response_ids):
            state = torch.tensor([pair.prompt_ids + pair.response_ids[:t]])
            losses.append(-plain.policy(input_ids=state).logits[0, -1].log_softmax(-1)[token])
    (3.0 * torch.stack(losses).mean()).backward()
    assert found.tolist() == pytest.approx([sum(losses).item(), len(losses)], rel=1e-5)
    for name, parameter in model.policy.named_parameters():
        torch.testing.assert_close(parameter.grad, plain.policy.get_parameter(name).grad, atol=2e-6, rtol=1e-4, msg=name)
    assert all(parameter.grad is None for parameter in model.critic.parameters())


def test_an_update_steps_along_the_sum_of_both_gradients(tiny, ranks):
    def make():
        model = tiny.both()
        return model, tiny.learners(model, ranks, learning_rate=1.0)

    def sampler():
        return DemonstrationSampler(tiny.demonstrations(), 4, tiny.pad, seed=1)

    model, learners = make()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    stats = Updater(ranks, *learners, tiny.rules(**RULES), BUDGET, demonstrations=sampler()).update(tiny.experience(), 0)
    ppo, learners = make()
    Updater(ranks, *learners, tiny.rules(**RULES), BUDGET).accumulate_gradients(tiny.experience(), BUDGET.max_tokens)
    ptx, (actor, _) = make()
    total, tokens = accumulate_ptx_gradients(ranks, actor, sampler().draw(ranks), 3.0, 1000).tolist()
    assert stats.ptx_loss == pytest.approx(total / tokens, rel=1e-5)
    for name, parameter in model.named_parameters():
        gradients = [other.get_parameter(name).grad for other in (ppo, ptx)]
        expected = gradients[0] if gradients[1] is None else gradients[0] + gradients[1]
        torch.testing.assert_close(before[name] - parameter, expected, atol=2e-6, rtol=1e-4, msg=name)


def test_each_pass_draws_every_demonstration_once(tiny, ranks):
    pairs = [EncodedPair([3, 4], [5 + index]) for index in range(6)]
    sampler = DemonstrationSampler(pairs, 4, tiny.pad, seed=0)
    drawn = [token for _ in range(3) for token in sampler.draw(ranks).response_ids_BR[:, 0].tolist()]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == [5, 6, 7, 8, 9, 10]


def test_with_the_coefficient_at_zero_nothing_is_drawn_and_nothing_changes(tiny, make_trainer):
    rows, weights = [], []
    for demonstrations in ((), tiny.demonstrations()):
        trainer = make_trainer(demonstrations=demonstrations)
        assert trainer.demonstrations is None
        rows.append({key: value for key, value in trainer.step().items() if not key.startswith("time/")})
        weights.append(tiny.both_of(trainer).state_dict())
    assert rows[0] == rows[1] and "loss/ptx" not in rows[0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_the_likelihood_of_the_demonstrations_rises_and_in_a_critic_warm_up_none_is_drawn(tiny, make_trainer):
    trainer = make_trainer(demonstrations=tiny.demonstrations(), ptx_coef=5.0, critic_warmup_iterations=1, ptx_batch_size=6)
    rows = [trainer.step() for _ in range(8)]
    assert "loss/ptx" not in rows[0]
    assert rows[-1]["loss/ptx"] < 0.8 * rows[1]["loss/ptx"]
    assert trainer.demonstrations.sampler.cursor == 7 * 4 * 6  # iterations x optimizer steps x demonstrations


def test_by_default_as_many_are_drawn_as_responses_make_a_minibatch(tiny, make_trainer):
    assert make_trainer(demonstrations=tiny.demonstrations(), ptx_coef=1.0).demonstrations.batch_size == 4
