"""Policy and critic in one module: one forward, one optimizer with two learning rates.

PackedRow of prompts and responses -> log-probability and value of each response token

Axes: N tokens of the row, K response tokens, V vocabulary, H hidden size.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.models import HEAD, find_backbone, find_model
from stages.packing import PackedRow, compute_hidden_states, count_filling
from stages.ppo.losses import compute_entropies, compute_logprobs

_MAX_LOGITS = 2**24  # logits held at a time (64 MB in float32); beyond it the head is computed in chunks, again in the backward pass


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
        hidden_KH = compute_hidden_states(self.backbone, row)[states_K]
        with torch.autocast(hidden_KH.device.type, enabled=False):
            return self.head(hidden_KH.float()).squeeze(-1)


Member = Literal["policy", "critic"]
MEMBERS: tuple[Member, ...] = ("policy", "critic")


class TokenOutputs(NamedTuple):
    """What policy and critic say of each response token, in float32; None: not asked for."""

    logprobs_K: Tensor | None
    entropies_K: Tensor | None  # of the distribution that each token was drawn from, without a gradient
    values_K: Tensor | None  # of the state before each token


class ActorCritic(nn.Module):
    """What PPO trains; `forward` is the only entry used with a gradient, so that wrappers (DDP, DeepSpeed) see every step."""

    def __init__(self, policy: nn.Module, critic: Critic) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic

    def forward(
        self, row: PackedRow, predictors_K: Tensor, temperature: float, members: Sequence[Member] = MEMBERS, with_entropies: bool = False
    ) -> TokenOutputs:
        """Compute what belongs to each response token.

        Args:
            row: prompts and responses, one document each.
            predictors_K: index in the row of the token before each response token.
            temperature: divides the logits.
            members: whom to ask.
            with_entropies: compute the policy's too.
        """
        logprobs_K, entropies_K, values_K = None, None, None
        if "policy" in members:
            logprobs_K, entropies_K = compute_token_logprobs(self.policy, row, predictors_K, temperature, with_entropies)
        if "critic" in members:
            values_K = self.critic(row, predictors_K)
        return TokenOutputs(logprobs_K, entropies_K, values_K)


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
    """Compute the log-probability of each response token (and the entropy where it was drawn), in float32.

    Logits exist for response tokens only, and never for more than a chunk of them at a time.
    """
    num_tokens = len(predictors_K)
    predictors_K = F.pad(predictors_K, (0, count_filling(num_tokens)))  # at the first token of the row: computed and never read
    hidden_KH = compute_hidden_states(find_backbone(policy), row)[predictors_K]
    targets_K = row.ids_N[predictors_K + 1]
    head = policy.get_output_embeddings()
    size = max(1, _MAX_LOGITS // head.weight.shape[0])
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
