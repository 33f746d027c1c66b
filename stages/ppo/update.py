"""Experience -> epochs x minibatches x micro-batches -> one optimizer step per minibatch.

Axes: B responses of this rank, R response tokens. A minibatch's loss is the mean over the real tokens of that
minibatch on all ranks: micro-batch size and the number of ranks change nothing but rounding.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from stages.ppo.actor_critic import MEMBERS, TokenOutputs, trainable
from stages.ppo.ema import AveragedWeights
from stages.ppo.experience import Experience, Rollout
from stages.ppo.losses import (
    compute_log_ratios,
    compute_policy_losses,
    compute_value_losses,
    find_clipped_ratios,
    find_clipped_values,
    sum_tokens,
)
from stages.ppo.memory import TokenBudget
from stages.ppo.ptx import DemonstrationSampler, accumulate_ptx_gradients
from stages.ppo.ranks import max_over_ranks, sum_over_ranks, unwrap
from stages.ppo.rollout import Autocast
from stages.ppo.rules import UpdateRules
from stages.ppo.sampler import derive_seed


@dataclass(frozen=True)
class UpdateStats:
    """Means over all tokens of all minibatches of all ranks."""

    policy_loss: float
    value_loss: float
    approxkl: float  # ½ (log π − log π_old)²
    clipfrac: float
    value_clipfrac: float
    ratio: float
    ratio_var: float
    start_deviation: float  # largest |log ratio| before the first optimizer step; 0 but for rounding
    policy_grad_norm: float  # before clipping, mean over optimizer steps
    critic_grad_norm: float
    optimizer_steps: int
    ptx_loss: float | None = None  # mean of −log π over the response tokens of all demonstrations


# Order of the running sums over tokens; the last two are over those of the demonstrations.
_SUMS = ("tokens", "policy_loss", "value_loss", "approxkl", "clipfrac", "value_clipfrac", "ratio", "ratio_squared")
_SUMS += ("ptx_loss", "ptx_tokens")


def update(
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    experience: Experience,
    rules: UpdateRules,
    seed: int,
    accelerator: Accelerator,
    autocast: Autocast,
    *,
    budget: TokenBudget,
    train_policy: bool = True,
    average: AveragedWeights | None = None,
    demonstrations: DemonstrationSampler | None = None,
) -> UpdateStats:
    """Train policy and critic on one rollout.

    Args:
        model: the prepared ActorCritic.
        optimizer: over the trainable parameters of both.
        experience: this rank's responses.
        rules: sizes and coefficients.
        seed: of the permutations.
        accelerator: sums over ranks, backward, gradient clipping.
        autocast: precision of the forwards.
        budget: tokens of a micro-batch.
        train_policy: whether the policy learns too, or the critic alone.
        average: takes in the policy's weights after each optimizer step.
        demonstrations: mixed in wherever the policy learns, with `rules.ptx_coef`.
    """
    device = experience.response_ids_BR.device
    sums = torch.zeros(len(_SUMS), device=device)
    start_deviation = torch.zeros((), device=device)
    norms: list[Tensor] = []
    for rows_b in draw_minibatches(len(experience.finished_B), rules, seed):
        minibatch = experience.select(rows_b.to(device))
        drawn = demonstrations.draw(accelerator) if demonstrations is not None and train_policy else None
        accumulate = partial(accumulate_gradients, model, minibatch, rules, accelerator, autocast, demonstrations=drawn)
        minibatch_sums, deviation = budget.attempt(minibatch, accumulate, undo=lambda: optimizer.zero_grad())
        if not norms:
            start_deviation = deviation
        sums += minibatch_sums
        if rules.early_stop_kl is not None and _mean_approxkl(minibatch_sums, accelerator) > rules.early_stop_kl:
            optimizer.zero_grad()
            break
        norms.append(_clip_gradients(model, rules.max_grad_norm, accelerator))
        if not train_policy:
            _drop_policy_gradients(model, accelerator)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None and train_policy:
            average.update()
    return _summarize(sums, start_deviation, norms, accelerator)


def draw_minibatches(num_responses: int, rules: UpdateRules, seed: int) -> list[Tensor]:
    """Draw the rows of every minibatch: a fresh permutation for each epoch."""
    minibatches: list[Tensor] = []
    for epoch in range(rules.ppo_epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        minibatches += torch.randperm(num_responses, generator=generator).split(rules.minibatch_size)
    return minibatches


def accumulate_gradients(
    model: nn.Module,
    minibatch: Experience,
    rules: UpdateRules,
    accelerator: Accelerator,
    autocast: Autocast,
    max_tokens: int,
    demonstrations: Rollout | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of one minibatch, and of the demonstrations that are mixed in, micro-batch by micro-batch.

    Returns:
        (sums over this rank's tokens in the order of `_SUMS`, largest |log ratio|).
    """
    ptx_sums = torch.zeros(2, device=minibatch.response_ids_BR.device)
    if demonstrations is not None:
        ptx_sums = accumulate_ptx_gradients(model, demonstrations, rules.ptx_coef, max_tokens, accelerator, autocast)
    num_tokens = sum_over_ranks(accelerator, minibatch.response_mask_BR.sum())
    parts = [minibatch.select(rows_b) for rows_b in minibatch.split(max_tokens)]
    # The ranks' gradients are averaged, the loss is a mean over all their tokens: hence the number of processes.
    scale = accelerator.num_processes / num_tokens
    # One after the other: the activations of one model are gone before those of the other come. DDP waits for all gradients in one pass.
    turns = [(member,) for member in MEMBERS] if unwrap(accelerator, model) is model else [MEMBERS]
    weights = {"policy_loss": 1.0, "value_loss": rules.value_coef}
    sums: list[Tensor] = []
    deviations: list[Tensor] = []
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with nullcontext() if last else accelerator.no_sync(model):  # ranks average their gradients once per minibatch
            row, predictors_K = part.pack()
            figures: dict[str, Tensor] = {}
            for members in turns:
                with autocast:
                    outputs: TokenOutputs = model(row, predictors_K, rules.temperature, members)
                computed = _compute_losses(part, outputs, rules)
                weighted = [weights[name] * loss for name, loss in computed.items() if name in weights]
                accelerator.backward(torch.stack(weighted).sum() * scale)
                figures |= {name: figure.detach() for name, figure in computed.items()}
        part_sums, deviation = _measure(part, rules, **figures)
        sums.append(part_sums)
        deviations.append(deviation)
    return torch.cat([torch.stack(sums).sum(dim=0), ptx_sums]), torch.stack(deviations).max()


def _compute_losses(part: Experience, outputs: TokenOutputs, rules: UpdateRules) -> dict[str, Tensor]:
    """Compute what `_measure` reads of each model that was asked: its outputs for each token, and its loss summed over them."""
    mask_bR = part.response_mask_BR
    computed: dict[str, Tensor] = {}
    if outputs.logprobs_K is not None:
        logprobs_bR = part.unpack(outputs.logprobs_K)
        losses_bR = compute_policy_losses(logprobs_bR, part.old_logprobs_BR, part.advantages_BR, mask_bR, rules.clip_range)
        computed |= {"logprobs_bR": logprobs_bR, "policy_loss": sum_tokens(losses_bR, mask_bR)}
    if outputs.values_K is not None:
        values_bR = part.unpack(outputs.values_K)
        losses_bR = compute_value_losses(values_bR, part.old_values_BR, part.returns_BR, mask_bR, rules.value_clip_range)
        computed |= {"values_bR": values_bR, "value_loss": sum_tokens(losses_bR, mask_bR)}
    return computed


@torch.no_grad()
def _measure(
    part: Experience, rules: UpdateRules, logprobs_bR: Tensor, policy_loss: Tensor, values_bR: Tensor, value_loss: Tensor
) -> tuple[Tensor, Tensor]:
    mask_bR = part.response_mask_BR
    log_ratio_bR = compute_log_ratios(logprobs_bR, part.old_logprobs_BR, mask_bR)
    ratio_bR = log_ratio_bR.exp()
    clipped_bR = find_clipped_ratios(ratio_bR, part.advantages_BR, rules.clip_range)
    value_clipped_bR = find_clipped_values(values_bR, part.old_values_BR, part.returns_BR, rules.value_clip_range)
    sums = torch.stack(
        [
            mask_bR.sum().float(),
            policy_loss,
            value_loss,
            sum_tokens(0.5 * log_ratio_bR**2, mask_bR),
            sum_tokens(clipped_bR.float(), mask_bR),
            sum_tokens(value_clipped_bR.float(), mask_bR),
            sum_tokens(ratio_bR, mask_bR),
            sum_tokens(ratio_bR**2, mask_bR),
        ]
    )
    return sums, log_ratio_bR.abs().max()


def _mean_approxkl(minibatch_sums: Tensor, accelerator: Accelerator) -> float:
    sums = sum_over_ranks(accelerator, minibatch_sums)
    return float(sums[_SUMS.index("approxkl")] / sums[_SUMS.index("tokens")])


def _clip_gradients(model: nn.Module, max_grad_norm: float, accelerator: Accelerator) -> Tensor:
    """Clip policy and critic each to the norm, so that a large value error does not shrink the policy's step."""
    actor_critic = unwrap(accelerator, model)
    norms = [
        accelerator.clip_grad_norm_(trainable(part.parameters()), max_grad_norm) for part in (actor_critic.policy, actor_critic.critic)
    ]
    return torch.stack([torch.as_tensor(norm).detach() for norm in norms])


def _drop_policy_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    # After the backward pass, in which DDP waits for every gradient. An optimizer passes over a parameter without one: no weight
    # decay, and its moments start with the first step that counts.
    for parameter in unwrap(accelerator, model).policy.parameters():
        parameter.grad = None


def _summarize(sums: Tensor, start_deviation: Tensor, norms: list[Tensor], accelerator: Accelerator) -> UpdateStats:
    sums = sum_over_ranks(accelerator, sums)
    start_deviation = max_over_ranks(accelerator, start_deviation).reshape(1)
    mean_norms = torch.stack(norms).mean(dim=0) if norms else torch.zeros(2, device=sums.device)
    figures = torch.cat([sums, start_deviation, mean_norms.to(sums.device)]).tolist()  # the one transfer to the CPU
    totals = dict(zip(_SUMS, figures, strict=False))
    means = {name: total / totals["tokens"] for name, total in totals.items()}
    return UpdateStats(
        policy_loss=means["policy_loss"],
        value_loss=means["value_loss"],
        approxkl=means["approxkl"],
        clipfrac=means["clipfrac"],
        value_clipfrac=means["value_clipfrac"],
        ratio=means["ratio"],
        ratio_var=max(means["ratio_squared"] - means["ratio"] ** 2, 0.0),
        start_deviation=figures[-3],
        policy_grad_norm=figures[-2],
        critic_grad_norm=figures[-1],
        optimizer_steps=len(norms),
        ptx_loss=totals["ptx_loss"] / totals["ptx_tokens"] if totals["ptx_tokens"] else None,
    )
