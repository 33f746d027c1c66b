"""THE log-probability of response tokens: of logits that are there, and of a policy over a packed row.

Axes: N tokens of the row, K response tokens (k of a chunk), V vocabulary, H hidden size.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.models.adapters import find_backbone, find_model
from stages.models.forward import compute_hidden_states
from stages.models.kernels import is_cpu
from stages.models.logits import compute_logits
from stages.models.packing import PackedRow, count_filling
from stages.models.probe import ways_of


def compute_logprobs(logits_KV: Tensor, tokens_K: Tensor, temperature: float) -> Tensor:
    """Compute log softmax(logits / temperature) at the given tokens, in float32 whatever the logits are.

    Args:
        logits_KV: logits at the position before each token.
        tokens_K: token ids.
        temperature: the sampling temperature, > 0.
    """
    # Twice as fast on a CPU as gather and logsumexp.
    return -F.cross_entropy(_cool(logits_KV, temperature), tokens_K, reduction="none")


def get_num_tokens(policy: Any) -> int | None:
    """Get how many tokens a policy chooses among, if the rows behind them stand for none; None: among all.

    A policy that samples such a row says what nobody can read, and the reward model never learnt to judge it. So the distribution of a
    policy, of its reference and of a rollout is that over the first tokens: logits behind them are cut off, which copies nothing where
    there are none, and log-probabilities, ratios and KL stay those of what was sampled.
    """
    return getattr(find_model(policy), "num_tokens", None)


def compute_entropies(logits_KV: Tensor, temperature: float) -> Tensor:
    """Compute the entropy −Σ p log p of softmax(logits / temperature) at each position, in nats."""
    logprobs_KV = _cool(logits_KV, temperature).log_softmax(dim=-1)
    return -(logprobs_KV.exp() * logprobs_KV).sum(dim=-1)


def _cool(logits_KV: Tensor, temperature: float) -> Tensor:
    # The logits are PPO's largest tensor: a division by 1, forward and backward, would be a third of their time here.
    return logits_KV.float() if temperature == 1.0 else logits_KV.float() / temperature


# Logits held at a time, in float32 64 MB, and 1 GB on a GPU, where small products are slow; beyond it the head is computed in chunks,
# again in the backward pass, and its gradient is added up chunk by chunk.
_MAX_LOGITS, _MAX_LOGITS_ON_GPU = 2**24, 2**28


def compute_token_logprobs(
    policy: Any,
    row: PackedRow,
    predictors_K: Tensor,
    temperature: float,
    with_entropies: bool = False,
    *,
    all_rows: bool = False,
    targets_K: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute what the policy says of each response token, in float32.

    Logits exist for response tokens only, and never for more than a chunk of them at a time.

    Args:
        policy: a causal language model, or an adapter on one.
        row: prompts and responses, one document each; or responses that continue a prompt's document.
        predictors_K: index in the row of the token before each response token.
        temperature: divides the logits.
        with_entropies: compute them too.
        all_rows: of the vocabulary, those that stand for no token too (see `get_num_tokens`), as the loss of training has them.
        targets_K: the response tokens, where they do not follow their predictors in the row.

    Returns:
        (logprobs_K, entropies_K of the distribution that each token was drawn from, without a gradient; None where not asked for).
    """
    num_tokens = len(predictors_K)
    filling = (0, count_filling(num_tokens))
    predictors_K = F.pad(predictors_K, filling)  # at the first token of the row: computed and never read
    hidden_KH = compute_hidden_states(find_backbone(policy), row, predictors_K)
    targets_K = row.ids_N[predictors_K + 1] if targets_K is None else F.pad(targets_K, filling)
    model = find_model(policy)
    head = functools.partial(compute_logits, model, own_head=ways_of(model).own_head)
    vocab_size = None if all_rows else get_num_tokens(policy)
    most = _MAX_LOGITS if is_cpu(row.ids_N) else _MAX_LOGITS_ON_GPU
    size = max(1, most // model.config.get_text_config().vocab_size)
    recompute = torch.is_grad_enabled() and len(targets_K) > size
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for hidden_kH, targets_k in zip(hidden_KH.split(size), targets_K.split(size), strict=True):
        if recompute:
            logprobs_k, entropies_k = checkpoint(
                _read_head, head, vocab_size, hidden_kH, targets_k, temperature, with_entropies, use_reentrant=False
            )  # pyright: ignore[reportGeneralTypeIssues]
        else:
            logprobs_k, entropies_k = _read_head(head, vocab_size, hidden_kH, targets_k, temperature, with_entropies)
        logprobs.append(logprobs_k)
        entropies += [] if entropies_k is None else [entropies_k]
    return torch.cat(logprobs)[:num_tokens], torch.cat(entropies)[:num_tokens] if entropies else None


def _read_head(
    head: Callable[[Tensor], Tensor], vocab_size: int | None, hidden_KH: Tensor, targets_K: Tensor, temperature: float, with_entropies: bool
) -> tuple[Tensor, Tensor | None]:
    logits_KV = head(hidden_KH)[:, :vocab_size] if vocab_size else head(hidden_KH)
    entropies_K = compute_entropies(logits_KV.detach(), temperature) if with_entropies else None
    return compute_logprobs(logits_KV, targets_K, temperature), entropies_K
