"""A model in training: its forward through what wraps it, gradients that add up over micro-batches, the optimizer's step, its state.

    TorchLearner       one process, or several that average their gradients (DDP)
    stages.ppo.zero    DeepSpeed: optimizer, gradients and weights shared out over the ranks (ZeRO)

Policy and critic are a learner each, so that each is clipped by its own norm, the critic can learn alone, and the activations of one are
gone before those of the other come.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.ppo.actor_critic import trainable
from stages.process.ranks import Ranks
from stages.settings import PPOSettings


class Learner(Protocol):
    """What `update` and the trainer use of a model in training."""

    module: nn.Module  # without what wraps it
    can_drop_gradients: bool  # whether `drop_gradients` is possible

    def __call__(self, *inputs: Any) -> Any:
        """Run the module's forward; every one that is followed by `backward` goes through here."""

    def micro_step(self, *, last: bool) -> AbstractContextManager[Any]:
        """Hold one forward and backward; at the last one before `step`, ranks average their gradients."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""

    def step(self) -> Tensor:
        """Clip the gradients, move the weights, drop the gradients; returns the norm before clipping, where the module computes."""
        ...

    def drop_gradients(self) -> None:
        """Forget the gradients since the last step."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set it for the steps to come."""

    def whole_weights(self, *, frozen: bool = True) -> AbstractContextManager[Any]:
        """Inside, every rank holds all weights, and `module` can be used alone; without `frozen`, those that learn only.

        To be entered by all ranks.
        """
        ...

    def save(self, path: Path) -> None:
        """Write weights that learn and the optimizer's state to a file or directory; to be called by all ranks."""

    def load(self, path: Path) -> None:
        """Go back to what `save` wrote; to be called by all ranks."""


class TorchLearner:
    """A learner by plain torch; with several ranks under DDP."""

    can_drop_gradients = True

    def __init__(self, ranks: Ranks, module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self.module = module
        self.optimizer = optimizer  # over the module's trainable parameters
        self.max_grad_norm = max_grad_norm
        self._ranks = ranks
        self._wrapped: Any = ranks.accelerator.prepare_model(module)

    def __call__(self, *inputs: Any) -> Any:
        return self._wrapped(*inputs)

    def micro_step(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self._ranks.accelerator.no_sync(self._wrapped)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> Tensor:
        norm = nn.utils.clip_grad_norm_(trainable(self.module.parameters()), self.max_grad_norm)
        self.optimizer.step()
        self.drop_gradients()
        return norm

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad()

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def whole_weights(self, *, frozen: bool = True) -> AbstractContextManager[Any]:
        return nullcontext()

    def save(self, path: Path) -> None:
        if self._ranks.is_main:
            weights = {name: parameter.detach() for name, parameter in self.module.named_parameters() if parameter.requires_grad}
            torch.save({"weights": weights, "optimizer": self.optimizer.state_dict()}, path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        parameters = dict(self.module.named_parameters())
        for name, saved in state["weights"].items():
            parameters[name].copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])


def make_optimizer(module: nn.Module, settings: PPOSettings, learning_rate: float) -> torch.optim.AdamW:
    """Make AdamW over a module's trainable parameters."""
    return torch.optim.AdamW(
        trainable(module.parameters()),
        lr=learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def compute_lr_factor(iteration: int, iterations: int, warmup_steps: int, lr_schedule: str, min_lr_ratio: float) -> float:
    """Compute the learning rate of an iteration (from 0) as a fraction of its peak: linear warm-up, then the decay."""
    if iteration < warmup_steps:
        return (iteration + 1) / warmup_steps
    progress = (iteration - warmup_steps) / max(iterations - warmup_steps, 1)
    if lr_schedule == "constant":
        return 1.0
    shape = 1.0 - progress if lr_schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return min_lr_ratio + (1.0 - min_lr_ratio) * shape
