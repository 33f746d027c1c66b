"""Policy and critic in one module: one forward, one optimizer with two learning rates.

Axes: B sequences, T tokens, R response tokens (the last R of T), V vocabulary, H hidden size. Masks are True at a real token.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Critic(nn.Module):
    """A value for each token: the reward model's backbone under a head of our own, with a bias.

    At the start the value equals the reward model's score: score = (logit − score_bias) / score_scale is folded into the head.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
        """Compute values_BT: at each token, the value of the state after it, in float32."""
        hidden_BTH = compute_hidden_states(self.backbone, input_ids_BT, attention_mask_BT, position_ids_BT)
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            return self.head(hidden_BTH.float()).squeeze(-1)


class ActorCritic(nn.Module):
    """What PPO trains; `forward` is the only entry used with a gradient, so that wrappers (DDP, DeepSpeed) see every step."""

    def __init__(self, policy: nn.Module, critic: Critic) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor, num_response_tokens: int) -> tuple[Tensor, Tensor]:
        """Compute what belongs to each response token: the logits that chose it and the value of the state before it.

        Args:
            input_ids_BT: prompts and responses.
            attention_mask_BT: True at a real token.
            num_response_tokens: R, the trailing columns that are responses.

        Returns:
            (logits_BRV, values_BR); values are float32, logits in the precision of the forward.
        """
        logits_BRV = compute_response_logits(self.policy, input_ids_BT, attention_mask_BT, num_response_tokens)
        values_BT = self.critic(input_ids_BT, attention_mask_BT, position_ids(attention_mask_BT))
        return logits_BRV, values_BT[:, -num_response_tokens - 1 : -1]


def init_critic(reward_model: PreTrainedModel) -> Critic:
    """Make the critic out of a reward model; takes over (and will train) its backbone, so give it a copy of its own."""
    config = reward_model.config
    weight_1H = find_head(reward_model).weight.detach().float()
    head = nn.Linear(weight_1H.shape[1], 1, bias=True, device=weight_1H.device)
    with torch.no_grad():
        head.weight.copy_(weight_1H / config.score_scale)
        head.bias.fill_(-config.score_bias / config.score_scale)
    return Critic(find_backbone(reward_model), head)


def compute_response_logits(policy: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, num_response_tokens: int) -> Tensor:
    """Compute logits_BRV, the logits at the token before each response token; none are computed over the prompt."""
    logits = policy(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT.long(),
        position_ids=position_ids(attention_mask_BT),
        use_cache=False,
        logits_to_keep=num_response_tokens + 1,
    ).logits
    return logits[:, :-1]


def compute_hidden_states(backbone: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
    """Compute the last hidden states, hidden_BTH."""
    return backbone(
        input_ids=input_ids_BT, attention_mask=attention_mask_BT.long(), position_ids=position_ids_BT, use_cache=False
    ).last_hidden_state


def position_ids(attention_mask_BT: Tensor) -> Tensor:
    """Count positions over real tokens only, so that padding on the left moves nothing."""
    return (attention_mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


def find_backbone(reward_model: PreTrainedModel) -> nn.Module:
    """Get the transformer below the scalar head."""
    return getattr(reward_model, reward_model.base_model_prefix)


def find_head(reward_model: PreTrainedModel) -> nn.Linear:
    """Get the scalar head `score`."""
    return reward_model.get_submodule("score")  # pyright: ignore[reportReturnType]


def trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Keep the parameters that an optimizer should see."""
    return [parameter for parameter in parameters if parameter.requires_grad]
