"""Bugs that were seen in another PPO trainer (TRL 1.12.0's, run on tiny models), each kept out of ours by a test.

One more of them, a model's own repetition penalty that leaks into rollouts, is kept out in test_rollout.py
(`test_a_base_models_generation_config_never_leaks_in`).
"""

import random

import numpy as np
import pytest
import torch

from stages.models.tokenizer import load_tokenizer
from stages.responses.engine import TorchEngine, make_sampling, roll_out
from stages.settings import PPOSettings

ONE_BY_ONE = {"max_tokens_per_microbatch": 1}  # micro-batches as small as they get: one response each


@pytest.fixture
def make_trainer(make_trainer):
    """Factory: two minibatches of 8 responses, two epochs; every prompt is drawn once per rollout of 16."""

    def make(prompts=16, **changes):
        values = {"iterations": 1000, "rollout_batch_size": 16, "minibatch_size": 8, "max_tokens_per_microbatch": 8192}
        return make_trainer(prompts=[[3 + index % 13, *range(3, 4 + index % 5)] for index in range(prompts)], **values | changes)

    return make


def bias_end_token(tiny, policy, bias):
    """Make the end token likelier."""
    head = torch.nn.Linear(policy.config.hidden_size, tiny.vocabulary)
    head.weight = policy.lm_head.weight
    head.bias.data.zero_()
    head.bias.data[tiny.eos] = bias
    policy.lm_head = head
    return policy


def weights(trainer):
    modules = (trainer.actor.module, trainer.critic.module)
    return torch.cat([parameter.detach().flatten() for module in modules for parameter in module.parameters()])


def count_optimizer_steps(trainer):
    """Run one iteration and count the steps that reach torch's optimizer of the policy, and as many that of the critic."""
    steps, critic_steps = [], []
    hooks = [
        learner.optimizer.register_step_post_hook(lambda *_, made=made: made.append(1))
        for learner, made in ((trainer.actor, steps), (trainer.critic, critic_steps))
    ]
    metrics = trainer.step()
    for hook in hooks:
        hook.remove()
    assert len(critic_steps) == len(steps)
    assert metrics["optimizer_steps"] == len(steps)
    return len(steps)


@pytest.mark.parametrize("minibatch_size", [16, 8, 4])
def test_minibatches_and_accumulation_together_make_one_optimizer_step_per_minibatch(make_trainer, minibatch_size):
    """Seen: with both, the gradients of several minibatches ran into one step."""
    trainer = make_trainer(minibatch_size=minibatch_size, **ONE_BY_ONE)
    assert count_optimizer_steps(trainer) == 2 * 16 / minibatch_size


@pytest.mark.slow
def test_the_end_of_the_prompts_forces_no_optimizer_step(make_trainer):
    """Seen: in the rollout that used the last prompt, every micro-batch made a step."""
    trainer = make_trainer(prompts=32, **ONE_BY_ONE)  # every second rollout ends a pass
    assert [count_optimizer_steps(trainer) for _ in range(4)] == [4] * 4


def test_in_bfloat16_the_ratio_stays_one_while_the_policy_stands_still(make_trainer):
    """Seen: old log-probabilities in float32 from the rollout, new ones in bfloat16, so that the ratio was noise."""
    trainer = make_trainer(bfloat16=True, learning_rate=1e-30)
    for metrics in (trainer.step(), trainer.step()):
        assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-3)
        assert metrics["val/ratio_var"] < 1e-4
        assert metrics["policy/approxkl_avg"] < 1e-4
        assert metrics["policy/clipfrac_avg"] == 0.0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_whatever_the_global_generators_hold(make_trainer):
    """Seen: minibatches were drawn from numpy's global generator, which nobody seeded."""

    def run(noise, seed):
        random.seed(noise)
        np.random.seed(noise)
        torch.manual_seed(noise)
        trainer = make_trainer(seed=seed)
        for _ in range(2):
            random.random(), np.random.rand(noise), torch.rand(noise)
            trainer.step()
        return weights(trainer)

    assert torch.equal(run(noise=1, seed=3), run(noise=2, seed=3))
    assert not torch.equal(run(noise=1, seed=3), run(noise=1, seed=4))


def test_max_grad_norm_is_obeyed(make_trainer):
    """Seen: ignored. Gradients far below Adam's epsilon move nothing; unclipped ones do."""

    def find_largest_move(max_grad_norm):
        trainer = make_trainer(max_grad_norm=max_grad_norm)
        before = weights(trainer)
        trainer.step()
        return (weights(trainer) - before).abs().max().item()

    assert find_largest_move(1e-12) < 1e-8
    assert find_largest_move(1.0) > 1e-4


def test_the_end_token_is_learnt_even_where_it_pads_too(tiny):
    """Seen: with pad token = end token, the mask of real tokens left out the end token, and the policy never learnt to stop.

    The mask comes from lengths. The stages do not let it come to this either: see test_models.py, `load_tokenizer`.
    """
    policy = bias_end_token(tiny, tiny.policy(), 2.0)
    sampling = tiny.sampling(pad_token_id=tiny.eos)
    rollout = roll_out(TorchEngine(16), tiny.actor_learner(policy), [[5, 6, 7], [8]] * 8, sampling, seed=0)
    ends = (rollout.response_ids_BR == tiny.eos) & rollout.response_mask_BR
    assert rollout.finished_B.any()
    assert len(rollout.response_lengths_B.unique()) > 1  # some are padded
    assert torch.equal(ends.sum(dim=1), rollout.finished_B.long())


def test_without_a_configured_stop_token_the_end_token_ends_a_response(tiny, make_trainer, base_model_dir):
    """Seen: stop token null, the default, generated on behind the end token to the greatest length."""
    tokenizer = load_tokenizer(str(base_model_dir))
    sampling = make_sampling("ppo", tokenizer, PPOSettings().stop_token, max_new_tokens=8, temperature=1.0)
    assert sampling.stop_token_id == sampling.eos_token_id == tokenizer.eos_token_id

    trainer = make_trainer(policy=bias_end_token(tiny, tiny.policy(), 50.0))
    metrics = trainer.step()
    assert metrics["eos_rate"] == 1.0
    assert metrics["response_length"] == 1.0
