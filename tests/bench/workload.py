"""What every side of the bench works on: model sizes, prompts, and models with random weights. Needs torch and transformers only.

Ids are drawn at random: a random model's time does not depend on what they mean, and a bench needs no download.
"""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tests.bench.sizes import SIZES

PAD, EOS = 0, 1
_NEVER = -30.0  # a logit bias: exp(-30) is never sampled


@dataclass(frozen=True)
class PPOWork:
    """One PPO update: what both sides are given."""

    size: str
    hazard: float  # chance that a response ends at any one token; 0: every response has `max_new_tokens`
    num_prompts: int
    min_prompt_tokens: int
    max_prompt_tokens: int
    max_new_tokens: int
    ppo_epochs: int


def make_prompts(work: PPOWork) -> list[list[int]]:
    """Draw prompts of unequal lengths; the same for everyone who asks."""
    draw = random.Random(0)
    lengths = [draw.randint(work.min_prompt_tokens, work.max_prompt_tokens) for _ in range(work.num_prompts)]
    return [draw_ids(draw, length, work.size) for length in lengths]


def draw_ids(draw: random.Random, length: int, size: str) -> list[int]:
    """Draw ordinary token ids: neither padding nor end."""
    return [draw.randrange(2, SIZES[size].vocabulary) for _ in range(length)]


def make_tokenizer(size: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words w2, w3, ..., for trainers that ask for one."""
    vocabulary = {"<pad>": PAD, "<eos>": EOS} | {f"w{index}": index for index in range(2, SIZES[size].vocabulary)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def make_policy(size: str, hazard: float) -> LlamaForCausalLM:
    """Make a policy that ends a response at each token with about the chance `hazard`."""
    policy = make_plain_policy(size, seed=0)
    add_biased_head(policy, hazard)
    return policy


def make_plain_policy(size: str, seed: int, device: str = "cpu") -> LlamaForCausalLM:
    """Make a policy with random weights, which differ from device to device; a CPU draws 1.2 billion of them in ten seconds."""
    torch.manual_seed(seed)
    with torch.device(device):
        return LlamaForCausalLM._from_config(_make_config(size), attn_implementation="sdpa")


def add_biased_head(policy: LlamaForCausalLM, hazard: float) -> None:
    """Give the logits a bias: a response ends at each token with about the chance `hazard`, and never holds the pad token."""
    head = nn.Linear(policy.config.hidden_size, policy.config.vocab_size, bias=True)
    head.weight = policy.lm_head.weight
    with torch.no_grad():
        head.weight[EOS].zero_()
        head.bias.zero_()
        head.bias[EOS] = math.log(hazard / (1 - hazard) * policy.config.vocab_size) if hazard else _NEVER
        head.bias[PAD] = _NEVER
    policy.lm_head = head


def make_reward_model(size: str, seed: int) -> LlamaForSequenceClassification:
    """Make a reward model, or what a critic starts from."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification._from_config(_make_config(size, num_labels=1), attn_implementation="sdpa")


def _make_config(size: str, **changes: Any) -> LlamaConfig:
    shape = SIZES[size]
    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        **changes,
    )
