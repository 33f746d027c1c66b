"""The steps of pretrain, sft and rm as their trainers make them: micro-batches of the longest records, then the optimizer.

micro-batch -> compute_loss of the stage's own trainer -> backward -> clipping, AdamW -> (sft) held-out answers
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stages.models.adapters import find_model
from stages.ppo.actor_critic import trainable
from stages.tracing.live import get_leaves
from stages.trl.fitting import add_fused_lm_head
from stages.trl.rm import RankingTrainer, collate_comparisons
from stages.trl.sft import IGNORED_LABEL, ResponseSFTTrainer, collate_demonstrations

Steps = Iterator[tuple[str, Any]]  # name of a phase -> what is done in it


class SFTLoss(ResponseSFTTrainer):
    """The loss alone, without a trainer around it."""

    def __init__(self, accelerator: Any, model: Any, *, fused_head_fits: bool) -> None:
        self.accelerator = accelerator
        self.fused_head_fits = fused_head_fits
        if self.fused_head_fits:
            add_fused_lm_head(find_model(model))


class RMLoss(RankingTrainer):
    """The loss alone, without a trainer around it."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.margin_scale = 0.0  # a margin is a number for each pair
        self._sums = {"train": torch.zeros(4), "eval": torch.zeros(4)}


def make_language_batch(count: int, prompt_tokens: int, response_tokens: int) -> dict[str, torch.Tensor]:
    """Lay out as many demonstrations of these lengths."""
    row = {"input_ids": [1] * (prompt_tokens + response_tokens), "labels": [IGNORED_LABEL] * prompt_tokens + [1] * response_tokens}
    return collate_demonstrations([row] * count)


def make_ranking_batch(count: int, answers: int, prompt_tokens: int, response_tokens: int) -> dict[str, torch.Tensor]:
    """Lay out as many comparisons of these lengths."""
    row = {"prompt_ids": [1] * prompt_tokens, "responses": [[1] * response_tokens] * answers, "ranks": list(range(1, answers + 1))}
    return collate_comparisons([row] * count)


def train_step(model: Any, loss_of: Any, batch: dict[str, torch.Tensor], optimizer: Any, *, max_grad_norm: float) -> Steps:
    """Make the last micro-batch of an optimizer step, and the step, phase by phase."""
    model.train()
    loss: list[Any] = []
    yield "forward", lambda: loss.append(loss_of.compute_loss(model, batch, num_items_in_batch=torch.tensor(1)))
    yield "backward", lambda: loss.pop().backward()
    yield "optimizer", lambda: _step(model, optimizer, max_grad_norm)


@contextmanager
def passed_by_backward(model: nn.Module) -> Generator[dict[int, nn.Parameter]]:
    """Collect the weights of modules from whose outputs no backward starts: those before the first that learns, as DeepSpeed sees it."""
    passed: dict[int, nn.Parameter] = {}
    met: set[int] = set()

    def look(module: nn.Module, _inputs: Any, outputs: Any) -> None:
        comes = any(leaf.requires_grad for leaf in get_leaves(outputs))
        for weight in module.parameters(recurse=False):
            if comes:
                met.add(id(weight))
                passed.pop(id(weight), None)
            elif id(weight) not in met:
                passed[id(weight)] = weight

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield passed
    finally:
        for hook in hooks:
            hook.remove()


def fill_state(module: nn.Module, optimizer: Any) -> None:
    """Have the optimizer's state there, as after a first step."""
    fill_gradients(module)
    optimizer.step()
    optimizer.zero_grad()


def fill_gradients(module: nn.Module) -> None:
    """Have gradients there, as after the first micro-batch of a step."""
    for parameter in trainable(module.parameters()):
        parameter.grad = torch.zeros_like(parameter)


def _step(model: nn.Module, optimizer: Any, max_grad_norm: float) -> None:
    nn.utils.clip_grad_norm_(trainable(model.parameters()), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
