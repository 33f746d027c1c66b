"""Logits and a uniform number per row -> one token per row: what every way of decoding shares.

Axes: B rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Response:
    """A response and the log-probability of each of its tokens under softmax(logits / temperature)."""

    ids: list[int]  # a stop token included
    logprobs: list[float]


def sample_tokens(logits_BV: Tensor, uniforms_B1: Tensor, temperature: float, *, greedy: bool = False) -> tuple[Tensor, Tensor]:
    """Turn one uniform number per row into a token by the inverse of the cumulative distribution.

    Args:
        logits_BV: of any precision.
        uniforms_B1: float64 in [0, 1).
        temperature: divisor of the logits.
        greedy: take the likeliest token instead.

    Returns:
        (tokens_B1, logprobs_B1): the tokens, each of a probability above 0, and their log-probabilities in float32.
    """
    probs_BV = torch.softmax(logits_BV.float() / temperature, dim=-1)
    if greedy:
        tokens_B1 = logits_BV.argmax(dim=-1, keepdim=True)
    else:
        cumulative_BV = probs_BV.cumsum(dim=-1, dtype=torch.float64)
        # The first token whose cumulative probability exceeds u: one of probability 0 adds nothing, so it never is the first.
        # The total is taken a little smaller, so that no product with it is rounded up to it, past the last such token.
        totals_B1 = cumulative_BV[:, -1:] * (1 - 2**-52)
        tokens_B1 = torch.searchsorted(cumulative_BV, uniforms_B1 * totals_B1, right=True)
        tokens_B1.clamp_(max=logits_BV.shape[1] - 1)  # logits that are NaN are found out by their log-probability
    return tokens_B1, probs_BV.gather(1, tokens_B1).log()
