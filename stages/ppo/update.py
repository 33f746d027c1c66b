"""Experience -> epochs x minibatches x micro-batches -> one optimizer step of policy and critic per minibatch.

Axes: B responses, R response tokens; b the responses of one rank's minibatch or micro-batch. A minibatch's loss is the mean over its real
tokens on all ranks: micro-batch size and the number of ranks change nothing but rounding.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stages.ppo.budget import TokenBudget
from stages.ppo.ema import AveragedWeights
from stages.ppo.experience import Experience, deal, split_alike
from stages.ppo.learner import Learner
from stages.ppo.losses import compute_policy_losses, compute_value_losses, find_clipped_ratios, find_clipped_values, sum_tokens
from stages.ppo.ptx import DemonstrationSampler, accumulate_ptx_gradients
from stages.process.context import Told
from stages.process.ranks import Ranks
from stages.process.seeds import derive_seed
from stages.responses.kl import compute_log_ratios
from stages.responses.rollout import Rollout
from stages.settings import PPOSettings


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


# Order of the running sums over tokens, as `_measure` makes them; the last two are over those of the demonstrations.
_MEASURED = ("tokens", "policy_loss", "value_loss", "approxkl", "clipfrac", "value_clipfrac", "ratio", "ratio_squared")
_SUMS = (*_MEASURED, "ptx_loss", "ptx_tokens")


@dataclass(frozen=True)
class Updater:
    """Trains policy and critic on one rollout after the other."""

    ranks: Ranks
    actor: Learner  # the policy in training
    critic: Learner
    settings: PPOSettings
    budget: TokenBudget
    average: AveragedWeights | None = None  # takes in the policy's weights after each optimizer step
    demonstrations: DemonstrationSampler | None = None  # mixed in wherever the policy learns, with `ptx_coef`

    def update(self, experience: Experience, seed: int, *, train_policy: bool = True, told: Told = lambda done, total: None) -> UpdateStats:
        """Train policy and critic on one rollout.

        Args:
            experience: the responses of all ranks.
            seed: of the permutations; the same on all ranks.
            train_policy: whether the policy learns too, or the critic alone.
            told: hears how many minibatches are done.
        """
        settings, device = self.settings, experience.response_ids_BR.device
        sums = torch.zeros(len(_SUMS), device=device)
        start_deviation = torch.zeros((), device=device)
        norms: list[Tensor] = []
        lengths_B = experience.lengths_2B.sum(dim=0)
        minibatches = draw_minibatches(len(experience.finished_B), settings, seed)
        for number, rows_b in enumerate(minibatches):
            told(number, len(minibatches))
            share_b = deal(rows_b, lengths_B, self.ranks.index, self.ranks.count)
            minibatch = experience.select(share_b)
            if settings.early_stop_kl is not None and norms and not self.actor.can_drop_gradients:  # before the first step the KL is 0
                looked = self._look_at_policy(minibatch)
                if looked > settings.early_stop_kl:
                    break
            drawn = self.demonstrations.draw(self.ranks) if self.demonstrations is not None and train_policy else None
            accumulate = partial(self.accumulate_gradients, minibatch, train_policy=train_policy, demonstrations=drawn)
            minibatch_sums, deviation = self.budget.attempt(minibatch, accumulate, undo=self._drop_gradients)
            if not norms:
                start_deviation = deviation
            sums += minibatch_sums
            stops_here = settings.early_stop_kl is not None and self._mean_approxkl(minibatch_sums) > settings.early_stop_kl
            if stops_here and self.actor.can_drop_gradients:
                self._drop_gradients()
                break
            norms.append(torch.stack([self.actor.step() if train_policy else torch.zeros((), device=device), self.critic.step()]).detach())
            if self.average is not None and train_policy:
                self.average.update()
        return self._summarize(sums, start_deviation, norms)

    def accumulate_gradients(
        self, minibatch: Experience, max_tokens: int, *, train_policy: bool = True, demonstrations: Rollout | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of this rank's part of a minibatch, and of the demonstrations that are mixed in, micro-batch by micro-batch.

        The policy's backward pass ends before the critic's forward begins: activations of one model at a time.

        Returns:
            (sums over this rank's tokens in the order of `_SUMS`, largest |log ratio|).
        """
        actor, critic, settings = self.actor, self.critic, self.settings
        ptx_sums = torch.zeros(2, device=minibatch.response_ids_BR.device)
        if demonstrations is not None:
            ptx_sums = accumulate_ptx_gradients(self.ranks, actor, demonstrations, settings.ptx_coef, max_tokens)
        num_tokens = self.ranks.sum(minibatch.response_mask_BR.sum())
        # The ranks' gradients are averaged, the loss is a mean over all their tokens: hence the number of processes.
        scale = self.ranks.count / num_tokens
        micro_batches = split_alike(self.ranks, minibatch, max_tokens)
        sums: list[Tensor] = []
        deviations: list[Tensor] = []
        for index, rows_b in enumerate(micro_batches):
            part, last = minibatch.select(rows_b), index == len(micro_batches) - 1
            row, predictors_K = part.pack()
            mask_bR = part.response_mask_BR
            with actor.micro_step(last=last), torch.set_grad_enabled(train_policy):
                logprobs_K, _ = actor(row, predictors_K, settings.temperature)
                logprobs_bR = part.unpack(logprobs_K)
                losses_bR = compute_policy_losses(logprobs_bR, part.old_logprobs_BR, part.advantages_BR, mask_bR, settings.clip_range)
                policy_loss = sum_tokens(losses_bR, mask_bR)
                if train_policy:
                    actor.backward(policy_loss * scale)
            with critic.micro_step(last=last):
                values_K = critic(row, predictors_K)
                values_bR = part.unpack(values_K)
                losses_bR = compute_value_losses(values_bR, part.old_values_BR, part.returns_BR, mask_bR, settings.value_clip_range)
                value_loss = sum_tokens(losses_bR, mask_bR)
                critic.backward(settings.value_coef * value_loss * scale)
            part_sums, deviation = _measure(
                part, settings, logprobs_bR.detach(), policy_loss.detach(), values_bR.detach(), value_loss.detach()
            )
            sums.append(part_sums)
            deviations.append(deviation)
        return torch.cat([torch.stack(sums).sum(dim=0), ptx_sums]), torch.stack(deviations).max()

    @torch.no_grad()
    def _look_at_policy(self, minibatch: Experience) -> float:
        """Compute a minibatch's approximate KL by a forward of its own, where gradients could not be dropped after it."""
        kl_sum, num_tokens = torch.zeros((2,), device=minibatch.response_ids_BR.device)
        for rows_b in split_alike(self.ranks, minibatch, self.budget.max_tokens):
            part = minibatch.select(rows_b)
            row, predictors_K = part.pack()
            logprobs_K, _ = self.actor(row, predictors_K, self.settings.temperature)
            log_ratio_bR = compute_log_ratios(part.unpack(logprobs_K), part.old_logprobs_BR, part.response_mask_BR)
            kl_sum += sum_tokens(0.5 * log_ratio_bR**2, part.response_mask_BR)
            num_tokens += part.response_mask_BR.sum()
        kl_sum, num_tokens = self.ranks.sum(torch.stack([kl_sum, num_tokens]))
        return float(kl_sum / num_tokens)

    def _drop_gradients(self) -> None:
        self.actor.drop_gradients()
        self.critic.drop_gradients()

    def _mean_approxkl(self, minibatch_sums: Tensor) -> float:
        sums = self.ranks.sum(minibatch_sums)
        return float(sums[_SUMS.index("approxkl")] / sums[_SUMS.index("tokens")])

    def _summarize(self, sums: Tensor, start_deviation: Tensor, norms: list[Tensor]) -> UpdateStats:
        sums = self.ranks.sum(sums)
        start_deviation = self.ranks.max(start_deviation).reshape(1)
        mean_norms = torch.stack(norms).mean(dim=0) if norms else torch.zeros(2, device=sums.device)
        figures = torch.cat([sums, start_deviation, mean_norms.to(sums.device)]).tolist()  # the one transfer to the CPU
        *over_tokens, deviation, policy_grad_norm, critic_grad_norm = figures
        totals = dict(zip(_SUMS, over_tokens, strict=True))
        means = {name: total / totals["tokens"] for name, total in totals.items()}
        return UpdateStats(
            policy_loss=means["policy_loss"],
            value_loss=means["value_loss"],
            approxkl=means["approxkl"],
            clipfrac=means["clipfrac"],
            value_clipfrac=means["value_clipfrac"],
            ratio=means["ratio"],
            ratio_var=max(means["ratio_squared"] - means["ratio"] ** 2, 0.0),
            start_deviation=deviation,
            policy_grad_norm=policy_grad_norm,
            critic_grad_norm=critic_grad_norm,
            optimizer_steps=len(norms),
            ptx_loss=totals["ptx_loss"] / totals["ptx_tokens"] if totals["ptx_tokens"] else None,
        )


def draw_minibatches(num_responses: int, settings: PPOSettings, seed: int) -> list[Tensor]:
    """Draw the rows of every minibatch: a fresh permutation for each epoch."""
    minibatches: list[Tensor] = []
    for epoch in range(settings.ppo_epochs):
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        minibatches += torch.randperm(num_responses, generator=generator).split(settings.minibatch_size)
    return minibatches


@torch.no_grad()
def _measure(
    part: Experience, settings: PPOSettings, logprobs_bR: Tensor, policy_loss: Tensor, values_bR: Tensor, value_loss: Tensor
) -> tuple[Tensor, Tensor]:
    mask_bR = part.response_mask_BR
    log_ratio_bR = compute_log_ratios(logprobs_bR, part.old_logprobs_BR, mask_bR)
    ratio_bR = log_ratio_bR.exp()
    clipped_bR = find_clipped_ratios(ratio_bR, part.advantages_BR, settings.clip_range)
    value_clipped_bR = find_clipped_values(values_bR, part.old_values_BR, part.returns_BR, settings.value_clip_range)
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
