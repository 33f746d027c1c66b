"""Policy and critic: what each says of the response tokens in a row.

PackedRow of prompts and responses -> log-probability (Actor) and value (Critic) of each response token

Both are modules whose `forward` is the only entry used in training, so that what wraps them (DDP, DeepSpeed) sees every step.
Axes: N tokens of the row, K response tokens, V vocabulary, H hidden size.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.models.adapters import find_backbone, find_model
from stages.models.forward import compute_hidden_states
from stages.models.head import HEAD
from stages.models.packing import PackedRow, count_filling
from stages.ppo.losses import compute_entropies, compute_logprobs

_MAX_LOGITS = 2**24  # logits held at a time (64 MB in float32); beyond it the head is computed in chunks, again in the backward pass


class Actor(nn.Module):
    """A log-probability for each response token: a policy, in training or (the reference) frozen."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, row: PackedRow, predictors_K: Tensor, temperature: float, with_entropies: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute log-probabilities, and on request entropies; see `compute_token_logprobs`."""
        return compute_token_logprobs(self.policy, row, predictors_K, temperature, with_entropies)


class Critic(nn.Module):
    """A value for each token: the reward model's backbone under a head of our own, with a bias.

    At the start the value equals the reward model's score: score = (logit − score_bias) / score_scale is folded into the head.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, row: PackedRow, states_K: Tensor) -> Tensor:
        """Compute values_K in float32: at each of the given tokens, the value of the state after it."""
        hidden_KH = compute_hidden_states(self.backbone, row, states_K)
        with torch.autocast(hidden_KH.device.type, enabled=False):
            return self.head(hidden_KH.float()).squeeze(-1)


class ActorCritic(NamedTuple):
    """What PPO trains."""

    actor: Actor
    critic: Critic


def init_critic(reward_model: Any) -> Critic:
    """Make the critic out of a reward model; takes over (and will train) its backbone, so give it a copy of its own."""
    inner = find_model(reward_model)
    config = inner.config
    weight_1H: Tensor = inner.get_submodule(HEAD).weight.detach().float()
    head = nn.Linear(weight_1H.shape[1], 1, bias=True, device=weight_1H.device)
    with torch.no_grad():
        head.weight.copy_(weight_1H / config.score_scale)
        head.bias.fill_(-config.score_bias / config.score_scale)
    return Critic(find_backbone(reward_model), head)


def compute_token_logprobs(
    policy: Any, row: PackedRow, predictors_K: Tensor, temperature: float, with_entropies: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute what the policy says of each response token, in float32.

    Logits exist for response tokens only, and never for more than a chunk of them at a time.

    Args:
        policy: a causal language model, or an adapter on one.
        row: prompts and responses, one document each.
        predictors_K: index in the row of the token before each response token.
        temperature: divides the logits.
        with_entropies: compute them too.

    Returns:
        (logprobs_K, entropies_K of the distribution that each token was drawn from, without a gradient; None where not asked for).
    """
    num_tokens = len(predictors_K)
    predictors_K = F.pad(predictors_K, (0, count_filling(num_tokens)))  # at the first token of the row: computed and never read
    hidden_KH = compute_hidden_states(find_backbone(policy), row, predictors_K)
    targets_K = row.ids_N[predictors_K + 1]
    head = policy.get_output_embeddings()
    size = max(1, _MAX_LOGITS // find_model(policy).config.get_text_config().vocab_size)
    recompute = torch.is_grad_enabled() and len(targets_K) > size
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for hidden_kH, targets_k in zip(hidden_KH.split(size), targets_K.split(size), strict=True):
        if recompute:
            logprobs_k, entropies_k = checkpoint(_read_head, head, hidden_kH, targets_k, temperature, with_entropies, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
        else:
            logprobs_k, entropies_k = _read_head(head, hidden_kH, targets_k, temperature, with_entropies)
        logprobs.append(logprobs_k)
        entropies += [] if entropies_k is None else [entropies_k]
    return torch.cat(logprobs)[:num_tokens], torch.cat(entropies)[:num_tokens] if entropies else None


def _read_head(
    head: nn.Module, hidden_KH: Tensor, targets_K: Tensor, temperature: float, with_entropies: bool
) -> tuple[Tensor, Tensor | None]:
    logits_KV = head(hidden_KH)
    entropies_K = compute_entropies(logits_KV.detach(), temperature) if with_entropies else None
    return compute_logprobs(logits_KV, targets_K, temperature), entropies_K


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Keep the parameters that an optimizer should see."""
    return [parameter for parameter in parameters if parameter.requires_grad]
