"""Tiny real models, built from a config on the fly, and rollouts with padded rows and unequal lengths."""

from types import SimpleNamespace

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from data.tokens import EncodedPair
from stages.blocks import HardwareSettings
from stages.models.calibration import Calibration
from stages.models.precision import set_precision
from stages.models.probe import enable_packing
from stages.ppo.actor_critic import Actor, init_critic
from stages.ppo.experience import Experience
from stages.ppo.learner import TorchLearner
from stages.process.ranks import Ranks
from stages.responses.engine import Sampling
from stages.responses.rollout import pack_rollout
from stages.settings import PPOSettings

PAD, EOS, STOP, VOCABULARY = 0, 1, 2, 16
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [3, 14], [15, 4, 4, 9, 3]]


def _config(**changes):
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": EOS,
    }
    return LlamaConfig(**values | changes)


def make_policy(seed=0, **changes):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config(**changes)).eval()
    assert enable_packing(model)
    return model


def make_reward_model(seed=1, score_bias=0.3, score_scale=1.7):
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(_config(num_labels=1)).eval()
    assert enable_packing(model)
    model.calibration = Calibration(score_bias, score_scale)
    return model


class Both(torch.nn.Module):
    """Policy and critic in one module, for tests that look at the weights of both."""

    def __init__(self, actor, critic):
        super().__init__()
        self.actor = actor
        self.critic = critic

    @property
    def policy(self):
        return self.actor.policy


def compute_in_bfloat16(*models):
    for model in models:
        set_precision(model, HardwareSettings(precision="bfloat16"))


def make_both(seed=0):
    return Both(Actor(make_policy(seed)), init_critic(make_reward_model(seed + 1)))


def make_learners(both, ranks, learning_rate=0.1, max_grad_norm=1e9):
    """(actor, critic) in training by plain gradient descent, with a norm that clips nothing."""
    modules = (both.actor, both.critic)
    return [TorchLearner(ranks, each, torch.optim.SGD(each.parameters(), lr=learning_rate), max_grad_norm) for each in modules]


def make_actor_learner(policy):
    """A policy in training, as a rollout wants it."""
    return TorchLearner(Ranks(Accelerator(cpu=True)), Actor(policy), torch.optim.SGD(policy.parameters(), lr=0.1), 1.0)


def make_rollout(seed=0):
    """Prompts and responses of unequal lengths; one response holds a pad token in its midst, one did not finish."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    prompts = [draw(length) for length in (3, 7, 5, 1, 4, 6, 2, 5)]
    responses = [[*draw(length), EOS] for length in (2, 5, 0, 3, 7, 1, 4)] + [draw(8)]
    responses[3][1] = PAD
    return pack_rollout(prompts, responses, [True] * 7 + [False], PAD, torch.device("cpu"))


def make_experience(seed=0):
    """An experience that a real model's figures are near to, but not equal to."""
    rollout = make_rollout(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    mask = rollout.response_mask_BR

    def noise(scale, shift=0.0):
        return torch.where(mask, torch.randn(mask.shape, generator=generator) * scale + shift, 0.0)

    return Experience(
        prompt_ids_BP=rollout.prompt_ids_BP,
        prompt_mask_BP=rollout.prompt_mask_BP,
        response_ids_BR=rollout.response_ids_BR,
        response_mask_BR=mask,
        finished_B=rollout.finished_B,
        engine_logprobs_BR=rollout.engine_logprobs_BR,
        old_logprobs_BR=noise(0.3, -2.7),
        old_values_BR=noise(0.5),
        advantages_BR=noise(1.0),
        returns_BR=noise(1.0),
    )


def make_rules(**changes):
    """Settings of an update in two epochs of minibatches of 4."""
    return PPOSettings(**{"ppo_epochs": 2, "minibatch_size": 4, "rollout_batch_size": 8, "value_coef": 0.5} | changes)


def make_demonstrations(count=6, seed=7):
    """Demonstrations of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [EncodedPair(draw(1 + 2 * index % 5), [*draw(index % 4), EOS]) for index in range(count)]


def list_builders():
    """What the fixture `tiny` is: builders and token ids."""
    return SimpleNamespace(
        pad=PAD,
        eos=EOS,
        stop=STOP,
        vocabulary=VOCABULARY,
        policy=make_policy,
        compute_in_bfloat16=compute_in_bfloat16,
        reward_model=make_reward_model,
        both=make_both,
        both_of=lambda trainer: Both(trainer.actor.module, trainer.critic.module),
        learners=make_learners,
        actor_learner=make_actor_learner,
        rollout=make_rollout,
        experience=make_experience,
        demonstrations=make_demonstrations,
        rules=make_rules,
        sampling=lambda **changes: Sampling(
            **{"max_new_tokens": 8, "temperature": 1.0, "pad_token_id": PAD, "eos_token_id": EOS, "stop_token_id": EOS} | changes
        ),
    )
