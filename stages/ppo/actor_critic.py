"""Policy and critic: what each says of the response tokens in a row.

PackedRow of prompts and responses -> log-probability (Actor) and value (Critic) of each response token

Both are modules whose `forward` is the only entry used in training, so that what wraps them (DDP, DeepSpeed) sees every step.
Axes: K response tokens, H hidden size.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.models.adapters import find_backbone, find_model
from stages.models.calibration import Calibration
from stages.models.forward import compute_hidden_states
from stages.models.head import HEAD
from stages.models.logprobs import compute_token_logprobs
from stages.models.packing import PackedRow
from stages.models.precision import autocast


class Actor(nn.Module):
    """A log-probability for each response token: a policy, in training or (the reference) frozen."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, row: PackedRow, predictors_K: Tensor, temperature: float, with_entropies: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute log-probabilities, and on request entropies; see `compute_token_logprobs`."""
        with autocast(find_backbone(self.policy), row.ids_N.device):
            return compute_token_logprobs(self.policy, row, predictors_K, temperature, with_entropies)


class Critic(nn.Module):
    """A value for each token: the reward model's backbone under a head of our own, with a bias.

    At the start the value equals the reward model's score: its calibration is folded into the head.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, row: PackedRow, states_K: Tensor) -> Tensor:
        """Compute values_K in float32: at each of the given tokens, the value of the state after it."""
        with autocast(self.backbone, row.ids_N.device):
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
    calibration: Calibration = inner.calibration
    weight_1H: Tensor = inner.get_submodule(HEAD).weight.detach().float()
    head = nn.Linear(weight_1H.shape[1], 1, bias=True, device=weight_1H.device)
    with torch.no_grad():
        head.weight.copy_(weight_1H / calibration.scale)
        head.bias.fill_(-calibration.bias / calibration.scale)
    return Critic(find_backbone(reward_model), head)


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Keep the parameters that an optimizer should see."""
    return [parameter for parameter in parameters if parameter.requires_grad]
