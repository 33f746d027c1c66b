"""The average of the policy's weights: numbers by hand, and the exchange with the live ones."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from stages.ppo.ema import AveragedWeights, move_average
from stages.settings import PPOSettings


def test_three_steps_by_hand():
    average = torch.tensor([0.0, 8.0])
    expected = [[1.0, 8.0], [0.75, 7.0], [2.5625, 5.25]]  # a quarter of each new value
    for value, row in zip(([4.0, 8.0], [0.0, 4.0], [8.0, 0.0]), expected, strict=True):
        average = move_average(average, torch.tensor(value), 0.75)
        assert average.tolist() == row


def test_an_average_of_what_stands_still_stands_still_and_decay_zero_is_the_value():
    value = torch.randn(1000)
    assert torch.equal(move_average(value, value, 0.992), value)
    assert torch.equal(move_average(torch.randn(1000), value, 0.0), value)


def test_only_trainable_weights_are_averaged_and_they_begin_as_the_weights():
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    average = AveragedWeights(module, 0.5)
    assert torch.equal(average.averages["weight"], module.weight) and average.averages.keys() == {"weight"}


def test_the_average_is_taken_after_each_optimizer_step(make_trainer):
    trainer = make_trainer(ema_decay=0.9)
    policy = trainer.policy
    expected = {name: parameter.detach().double() for name, parameter in policy.named_parameters()}
    steps = []

    def follow(*_):
        steps.append(1)
        for name, parameter in policy.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().double()

    trainer.actor.optimizer.register_step_post_hook(follow)
    for _ in range(2):
        trainer.step()
    assert len(steps) == 8  # 2 iterations x 2 epochs x 2 minibatches
    for name, average in trainer.average.averages.items():
        torch.testing.assert_close(average.double(), expected[name], atol=1e-6, rtol=1e-6, msg=name)
        assert not torch.equal(average, policy.get_parameter(name)), name


def test_in_use_the_module_computes_with_the_average_and_afterwards_as_before(make_trainer):
    trainer = make_trainer(ema_decay=0.9)
    trainer.step()
    policy = trainer.policy
    parameters = dict(policy.named_parameters())
    live = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    averages = {name: average.clone() for name, average in trainer.average.averages.items()}
    with pytest.raises(InterruptedError), trainer.average.in_use():
        assert all(torch.equal(parameter, averages[name]) for name, parameter in policy.named_parameters())
        raise InterruptedError
    for name, parameter in policy.named_parameters():
        assert parameter is parameters[name]  # the optimizer still holds it
        assert torch.equal(parameter, live[name]) and torch.equal(trainer.average.averages[name], averages[name])


def test_off_there_is_no_average(make_trainer):
    assert make_trainer().average is None


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValidationError):
        PPOSettings(ema_decay=decay)
