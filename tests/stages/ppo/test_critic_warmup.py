"""Critic warm-up: in the first iterations the critic learns alone."""

import pytest
import torch
from pydantic import ValidationError

from stages.settings import PPOSettings

SETTINGS = {"critic_warmup_iterations": 2, "weight_decay": 0.1, "max_grad_norm": 1e-2, "warmup_steps": 4}


def snapshot(trainer):
    parts = {"policy": trainer.policy, "critic": trainer.critic.module}
    return {name: torch.cat([parameter.detach().flatten() for parameter in part.parameters()]) for name, part in parts.items()}


def test_in_the_warm_up_the_critic_moves_and_the_policy_does_not_then_both_do(make_trainer):
    trainer = make_trainer(**SETTINGS)
    states, rows = [snapshot(trainer)], []
    for _ in range(3):
        rows.append(trainer.step())
        states.append(snapshot(trainer))
    assert all(torch.equal(states[0]["policy"], states[k]["policy"]) for k in (1, 2))
    assert not torch.equal(states[2]["policy"], states[3]["policy"])
    assert all(not torch.equal(states[k]["critic"], states[k + 1]["critic"]) for k in range(3))
    assert [row["policy/trained"] for row in rows] == [0.0, 0.0, 1.0]
    assert [row["val/ratio"] for row in rows[:2]] == [1.0, 1.0]
    assert rows[2]["val/ratio"] != 1.0
    assert [row["lr"] for row in rows] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3])  # its own warm-up goes on


def test_the_first_step_of_the_policy_is_as_long_as_without_a_warm_up(make_trainer):
    """Adam's moments begin with the first step that counts: a first step of full length, lr for each weight with a gradient."""
    trainer = make_trainer(critic_warmup_iterations=2, max_grad_norm=1e9, ppo_epochs=1, minibatch_size=8, adam_epsilon=1e-12)
    for _ in range(2):
        trainer.step()
    before = snapshot(trainer)["policy"]
    assert not trainer.actor.optimizer.state
    lr = trainer.step()["lr"]
    assert (snapshot(trainer)["policy"] - before).abs().max().item() == pytest.approx(lr, rel=1e-2)


def test_an_adaptive_kl_coef_waits_for_the_policy(make_trainer):
    """The KL is 0 while the policy stands still: that would pull kl_coef down."""
    trainer = make_trainer(critic_warmup_iterations=2, kl_coef=0.1, kl_target=5.0, kl_horizon=80)
    coefficients = [trainer.step()["kl_coef"] for _ in range(4)]
    assert coefficients[:3] == [0.1] * 3
    assert coefficients[3] < 0.1


def test_a_warm_up_that_never_ends_is_refused_with_both_numbers():
    with pytest.raises(ValidationError, match=r"critic_warmup_iterations = 5 .* iterations = 5"):
        PPOSettings(iterations=5, critic_warmup_iterations=5)
