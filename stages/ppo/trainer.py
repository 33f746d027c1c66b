"""One iteration of PPO: roll out -> score -> penalise -> estimate advantages -> update -> record.

Axes: B responses of this rank, R response tokens.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from data.tokens import EncodedPair
from stages.ppo.actor_critic import ActorCritic
from stages.ppo.advantages import adapt_kl_coef, estimate_advantages, penalize_kl, scale_by_std, whiten
from stages.ppo.ema import AveragedWeights
from stages.ppo.experience import Experience, Rollout
from stages.ppo.finite import require_finite_scores, require_finite_update
from stages.ppo.memory import TokenBudget
from stages.ppo.metrics import TokenFigures, describe_rollout, describe_update
from stages.ppo.optimizer import compute_lr_factor, make_optimizer
from stages.ppo.ptx import DemonstrationSampler
from stages.ppo.ranks import sum_over_ranks, unwrap
from stages.ppo.rollout import Autocast, Sampling, compute_ref_logprobs, evaluate_tokens, roll_out
from stages.ppo.rules import make_update_rules
from stages.ppo.sampler import PromptSampler, derive_seed
from stages.ppo.scoring import RunningMoments, apply_score_rules, score_responses
from stages.ppo.state import collect_generator_states, read_state, restore_generator_states
from stages.ppo.update import UpdateStats, update
from stages.settings import PPOSettings

# What a seed is drawn for: two uses of one (seed, iteration) must not share their noise.
_PROMPTS, _ROLLOUT, _UPDATE, _DEMONSTRATIONS = range(4)


class PPOTrainer:
    """Policy and critic in training, reference and reward model frozen, and all that a checkpoint must hold."""

    def __init__(
        self,
        actor_critic: ActorCritic,
        ref_policy: Any,
        reward_model: Any,
        prompts: list[list[int]],
        sampling: Sampling,
        settings: PPOSettings,
        *,
        seed: int,
        accelerator: Accelerator,
        autocast: Autocast,
        demonstrations: Sequence[EncodedPair] = (),
        note: Callable[[str], None] = print,
    ) -> None:
        self.settings = settings
        self.sampling = sampling
        self.prompts = prompts
        self.seed = seed
        self.accelerator = accelerator
        self.autocast = autocast
        self.rules = make_update_rules(settings, accelerator.num_processes)
        self.budget = TokenBudget(settings.max_tokens_per_microbatch, may_halve=accelerator.num_processes == 1, note=note)
        self.ref_policy = ref_policy.to(accelerator.device).eval().requires_grad_(False)
        self.reward_model = reward_model.to(accelerator.device).eval().requires_grad_(False)
        optimizer = make_optimizer(actor_critic, settings)
        self.model, self.optimizer = accelerator.prepare(actor_critic, optimizer)
        self.sampler = PromptSampler(len(prompts), derive_seed(seed, _PROMPTS))
        self.demonstrations = None
        if settings.ptx_coef > 0:
            batch_size = settings.ptx_batch_size or settings.minibatch_size
            self.demonstrations = DemonstrationSampler(
                demonstrations, batch_size, sampling.pad_token_id, derive_seed(seed, _DEMONSTRATIONS)
            )
        self.average = None if settings.ema_decay is None else AveragedWeights(self.actor_critic.policy, settings.ema_decay)
        self.kl_coef = settings.kl_coef
        self.score_moments = RunningMoments()
        self.iteration = 0

    @property
    def actor_critic(self) -> ActorCritic:
        """Policy and critic without what wraps them."""
        return unwrap(self.accelerator, self.model)

    @property
    def trains_policy(self) -> bool:
        """Whether the policy learns in this iteration, or the critic alone."""
        return self.iteration >= self.settings.critic_warmup_iterations

    def step(self) -> dict[str, float]:
        """Run one iteration and return its metrics."""
        marks_s = [time.perf_counter()]
        self._set_learning_rates()
        rollout = self._roll_out()
        marks_s.append(time.perf_counter())
        raw_scores_B, scores_B = self._score(rollout)
        figures = self.evaluate_tokens(rollout)
        rewards_BR = self._penalize(rollout, scores_B, figures)
        experience = self._estimate_advantages(rollout, rewards_BR, figures)
        marks_s.append(time.perf_counter())
        stats = self._update(experience)
        metrics = self._record(raw_scores_B, scores_B, figures, experience, stats)
        marks_s.append(time.perf_counter())
        self._adapt_kl_coef(metrics["objective/kl"])
        self.iteration += 1
        return metrics | {
            "time/rollout_s": marks_s[1] - marks_s[0],
            "time/score_s": marks_s[2] - marks_s[1],
            "time/update_s": marks_s[3] - marks_s[2],
            "time/tokens_per_s": metrics["tokens"] / (marks_s[3] - marks_s[0]),
        }

    def _set_learning_rates(self) -> None:
        settings = self.settings
        factor = compute_lr_factor(self.iteration, settings.iterations, settings.warmup_steps, settings.lr_schedule, settings.min_lr_ratio)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def _roll_out(self) -> Rollout:
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        drawn = self.sampler.draw(self.settings.rollout_batch_size, rank, world_size)
        self.actor_critic.eval()
        return roll_out(
            self.actor_critic.policy,
            [self.prompts[index] for index in drawn],
            self.sampling,
            seed=derive_seed(self.seed, _ROLLOUT, self.iteration, rank),
            batch_size=self.settings.rollout_micro_batch_size,
            autocast=self.autocast,
        )

    def _score(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        settings = self.settings
        raw_scores_B = self.score_responses(rollout)
        require_finite_scores(raw_scores_B, self.iteration + 1, self.sum_over_ranks)
        if settings.scale_scores:
            self.score_moments.update(raw_scores_B, self.sum_over_ranks)
        scores_B = apply_score_rules(
            raw_scores_B,
            rollout.finished_B,
            scale=self.score_moments.std,
            score_clip=settings.score_clip,
            missing_eos_score=settings.missing_eos_score,
        )
        return raw_scores_B, scores_B

    def score_responses(self, rollout: Rollout) -> Tensor:
        """Score each response by the reward model, scores_B."""
        return self.budget.attempt(rollout, lambda max_tokens: score_responses(self.reward_model, rollout, max_tokens, self.autocast))

    def evaluate_tokens(self, rollout: Rollout) -> TokenFigures:
        """Compute what the models say of each sampled token."""

        def evaluate(max_tokens: int) -> TokenFigures:
            # Reference and policy in the same micro-batches: then the KL of two equal models is 0 to the last bit.
            temperature = self.sampling.temperature
            logprobs_BR, values_BR, entropies_BR = evaluate_tokens(self.model, rollout, temperature, max_tokens, self.autocast)
            ref_logprobs_BR = compute_ref_logprobs(self.ref_policy, rollout, temperature, max_tokens, self.autocast)
            return TokenFigures(logprobs_BR, ref_logprobs_BR, values_BR, entropies_BR)

        return self.budget.attempt(rollout, evaluate)

    def _penalize(self, rollout: Rollout, scores_B: Tensor, figures: TokenFigures) -> Tensor:
        mask_BR = rollout.response_mask_BR
        rewards_BR = penalize_kl(scores_B, figures.logprobs_BR, figures.ref_logprobs_BR, mask_BR, self.kl_coef)
        return scale_by_std(rewards_BR, mask_BR, self.sum_over_ranks) if self.settings.whiten_rewards else rewards_BR

    def _estimate_advantages(self, rollout: Rollout, rewards_BR: Tensor, figures: TokenFigures) -> Experience:
        settings, mask_BR = self.settings, rollout.response_mask_BR
        advantages_BR, returns_BR = estimate_advantages(rewards_BR, figures.values_BR, mask_BR, settings.gamma, settings.gae_lambda)
        return Experience(
            **vars(rollout),
            old_logprobs_BR=figures.logprobs_BR,
            old_values_BR=figures.values_BR,
            advantages_BR=whiten(advantages_BR, mask_BR, self.sum_over_ranks),
            returns_BR=returns_BR,
        )

    def _update(self, experience: Experience) -> UpdateStats:
        # Dropout is off, so training mode changes nothing but this: recomputing activations only works in it.
        self.model.train(self.settings.gradient_checkpointing)
        seed = derive_seed(self.seed, _UPDATE, self.iteration, self.accelerator.process_index)
        stats = update(
            self.model,
            self.optimizer,
            experience,
            self.rules,
            seed,
            self.accelerator,
            self.autocast,
            budget=self.budget,
            train_policy=self.trains_policy,
            average=self.average,
            demonstrations=self.demonstrations,
        )
        require_finite_update(stats, self.iteration + 1)
        return stats

    def _record(
        self, raw_scores_B: Tensor, scores_B: Tensor, figures: TokenFigures, experience: Experience, stats: UpdateStats
    ) -> dict[str, float]:
        policy_group, critic_group = self.optimizer.param_groups
        metrics = describe_rollout(raw_scores_B, scores_B, figures, experience, self.kl_coef, self.sum_over_ranks)
        return (
            metrics
            | describe_update(stats)
            | {
                "policy/trained": float(self.trains_policy),
                "kl_coef": self.kl_coef,
                "lr": policy_group["lr"],
                "critic_lr": critic_group["lr"],
                "episodes": float((self.iteration + 1) * self.settings.rollout_batch_size),
            }
        )

    def _adapt_kl_coef(self, kl_per_response: float) -> None:
        settings = self.settings
        if settings.kl_target is not None and self.trains_policy:  # a policy that stands still has KL 0, which says nothing of kl_coef
            self.kl_coef = adapt_kl_coef(
                self.kl_coef, kl_per_response, settings.kl_target, settings.rollout_batch_size, settings.kl_horizon
            )

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """Sum local sums over all ranks."""
        return sum_over_ranks(self.accelerator, tensor)

    def collect_state(self) -> dict[str, Any]:
        """Collect all that a resumed run needs; every rank must call it."""
        generators = gather_object([collect_generator_states()])
        return {
            "weights": {name: parameter.detach() for name, parameter in self.actor_critic.named_parameters() if parameter.requires_grad},
            "averages": self.average.averages if self.average else {},
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "kl_coef": self.kl_coef,
            "score_moments": vars(self.score_moments).copy(),
            "budget": (self.budget.max_tokens, self.budget.may_halve),
            "cursor": self.sampler.cursor,
            "demonstrations_cursor": self.demonstrations.sampler.cursor if self.demonstrations else 0,
            "generators": generators,
        }

    def load_state(self, directory: Path) -> dict[str, Any]:
        """Go back to a state that `write_state` left in `directory`, and return all that was saved."""
        state = read_state(directory)
        parameters = dict(self.actor_critic.named_parameters())
        with torch.no_grad():
            for name, saved in state["weights"].items():
                parameters[name].copy_(saved)
        self.budget.max_tokens, self.budget.may_halve = state["budget"]
        if self.demonstrations:
            self.demonstrations.sampler.cursor = state["demonstrations_cursor"]
        if self.average:
            self.average.load(state["averages"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration, self.kl_coef, self.sampler.cursor = state["iteration"], state["kl_coef"], state["cursor"]
        self.score_moments = RunningMoments(**state["score_moments"])
        restore_generator_states(state["generators"][self.accelerator.process_index])
        return state
