"""One AdamW for policy and critic, with a learning rate each, and the course of the learning rate over the iterations."""

import math

import torch

from stages.ppo.actor_critic import ActorCritic, trainable
from stages.settings import PPOSettings


def make_optimizer(actor_critic: ActorCritic, settings: PPOSettings) -> torch.optim.AdamW:
    """Make one optimizer with a learning rate each for policy and critic."""
    critic_learning_rate = settings.critic_learning_rate or settings.learning_rate
    groups = [(actor_critic.policy, settings.learning_rate), (actor_critic.critic, critic_learning_rate)]
    return torch.optim.AdamW(
        [{"params": trainable(part.parameters()), "lr": peak_lr, "peak_lr": peak_lr} for part, peak_lr in groups],
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
