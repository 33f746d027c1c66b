"""One iteration of PPO: roll out -> score -> penalise -> estimate advantages -> update -> record.

Axes: B responses of this rank, R response tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data.tokens import EncodedPair
from stages.models import precision
from stages.models.adapters import find_backbone
from stages.ppo.actor_critic import Actor, ActorCritic
from stages.ppo.advantages import adapt_kl_coef, estimate_advantages, penalize_kl, scale_by_std, whiten
from stages.ppo.budget import TokenBudget
from stages.ppo.ema import AveragedWeights
from stages.ppo.experience import Experience, gather_experience, split_alike
from stages.ppo.guards import (
    require_finite_scores,
    require_finite_update,
    require_finite_weights,
    require_same_numbers,
    require_same_policy,
)
from stages.ppo.learner import Learner, TorchLearner, compute_lr_factor, make_optimizer
from stages.ppo.losses import compute_importance_weights
from stages.ppo.metrics import describe_engine, describe_rollout, describe_update, timed
from stages.ppo.ptx import DemonstrationSampler
from stages.ppo.sampler import PromptSampler
from stages.ppo.score_rules import RunningMoments, apply_score_rules
from stages.ppo.state import collect_generator_states, read_state, restore_generator_states, write_state
from stages.ppo.update import Updater, UpdateStats
from stages.ppo.zero import ZeroLearner, partition_frozen
from stages.process.context import Told
from stages.process.engine import Engine
from stages.process.gpu import release_memory
from stages.process.ranks import Ranks
from stages.process.seeds import derive_seed
from stages.responses.engine import RolloutEngine, Sampling, TorchEngine, roll_out
from stages.responses.figures import TokenFigures, evaluate_tokens
from stages.responses.rollout import Rollout
from stages.responses.scores import Scorer, score_rollout
from stages.settings import PPOSettings

# What a seed is drawn for: two uses of one (seed, iteration) must not share their noise.
_PROMPTS, _ROLLOUT, _UPDATE, _DEMONSTRATIONS = range(4)

ACTOR_FILE, _CRITIC_FILE = "actor", "critic"


class PPOTrainer:
    """Policy and critic in training, reference and reward model frozen, and all that a checkpoint must hold."""

    def __init__(
        self,
        ranks: Ranks,
        actor_critic: ActorCritic,
        ref_policy: Any,
        reward_model: Any,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        settings: PPOSettings,
        *,
        seed: int,
        engine: Engine,
        demonstrations: Sequence[EncodedPair] = (),
        note: Callable[[str], None] = print,
    ) -> None:
        self.ranks = ranks
        self.settings = settings
        self.engine = engine
        self.rollout_engine: RolloutEngine = TorchEngine(settings.rollout_micro_batch_size)
        self.sampling = sampling
        self.prompts = prompts
        self.seed = seed
        self.learning_rate = settings.learning_rate  # of this iteration
        self.critic_learning_rate = settings.critic_learning_rate or settings.learning_rate
        self.actor = self._make_learner(actor_critic.actor, self.learning_rate)
        self.critic = self._make_learner(actor_critic.critic, self.critic_learning_rate)
        self.budget = TokenBudget(settings.max_tokens_per_microbatch, may_halve=engine.name == "none", note=note)
        self.reference = self._prepare_frozen(Actor(ref_policy))
        self.scorer = self._prepare_frozen(Scorer(reward_model))
        self.sampler = PromptSampler(len(prompts), derive_seed(seed, _PROMPTS))
        self.demonstrations = None
        if settings.ptx_coef > 0:
            batch_size = settings.ptx_batch_size or settings.minibatch_size
            self.demonstrations = DemonstrationSampler(
                demonstrations, batch_size, sampling.pad_token_id, derive_seed(seed, _DEMONSTRATIONS)
            )
        self.average = None if settings.ema_decay is None else AveragedWeights(self.policy, settings.ema_decay)
        self.updater = Updater(ranks, self.actor, self.critic, settings, self.budget, self.average, self.demonstrations)
        self.tell: Callable[[str, int, int], None] = lambda doing, done, total: None  # of what an iteration does, where it takes long
        self.kl_coef = settings.kl_coef
        self.score_moments = RunningMoments()
        self.iteration = 0

    def _make_learner(self, module: nn.Module, learning_rate: float) -> Learner:
        optimizer = make_optimizer(module, self.settings, learning_rate)
        if self.engine.name == "deepspeed":
            return ZeroLearner(module, optimizer, self.engine)
        return TorchLearner(self.ranks, module, optimizer, self.settings.max_grad_norm)

    def _prepare_frozen(self, module: nn.Module) -> Any:
        module.eval().requires_grad_(False)
        if self.engine.shares_weights:
            return partition_frozen(module, self.engine)
        return module.to(self.ranks.device)

    @property
    def policy(self) -> Any:
        """The policy without what wraps it."""
        return self.actor.module.policy

    @property
    def trains_policy(self) -> bool:
        """Whether the policy learns in this iteration, or the critic alone."""
        return self.iteration >= self.settings.critic_warmup_iterations

    def step(self) -> dict[str, float]:
        """Run one iteration and return its metrics."""
        times_s: dict[str, float] = {}
        self._set_learning_rates()
        with timed(times_s, "rollout"):
            rollout = self._roll_out()
            release_memory(self.ranks.device)  # of keys and values, to activations
        with timed(times_s, "score"):
            self.tell("scores", 0, len(rollout.finished_B))
            raw_scores_B, scores_B = self._score(rollout)
            figures = self.evaluate_tokens(rollout)
            engine_metrics = self._compare_engine(rollout, figures)
            rewards_BR = self._penalize(rollout, scores_B, figures)
            experience = self._estimate_advantages(rollout, rewards_BR, figures)
        with timed(times_s, "update"):
            stats = self._update(experience)
            metrics = self._record(raw_scores_B, scores_B, figures, experience, stats) | engine_metrics
        self._adapt_kl_coef(metrics["objective/kl"])
        self.iteration += 1
        return metrics | times_s | {"time/tokens_per_s": metrics["tokens"] / sum(times_s.values())}

    def _set_learning_rates(self) -> None:
        settings = self.settings
        factor = compute_lr_factor(self.iteration, settings.iterations, settings.warmup_steps, settings.lr_schedule, settings.min_lr_ratio)
        self.learning_rate = settings.learning_rate * factor
        self.critic_learning_rate = (settings.critic_learning_rate or settings.learning_rate) * factor
        self.actor.set_learning_rate(self.learning_rate)
        self.critic.set_learning_rate(self.critic_learning_rate)

    def _roll_out(self) -> Rollout:
        drawn = self.sampler.draw(self.settings.rollout_batch_size, self.ranks.index, self.ranks.count)
        prompts = [self.prompts[index] for index in drawn]
        told = partial(self.tell, "responses")
        return self.roll_out(prompts, derive_seed(self.seed, _ROLLOUT, self.iteration, 0), told=told)

    def roll_out(self, prompts: list[list[int]], seed: int, *, greedy: bool = False, told: Told | None = None) -> Rollout:
        """Answer this rank's share of some prompts; all ranks must call it. See `stages.responses.engine.roll_out`."""
        for learner in (self.actor, self.critic):
            learner.module.eval()
        share = (self.ranks.index, self.ranks.count)
        return roll_out(self.rollout_engine, self.actor, prompts, self.sampling, seed=seed, greedy=greedy, share=share, told=told)

    def _score(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        settings = self.settings
        raw_scores_B = self.ask_reward_model(rollout)
        require_finite_scores(raw_scores_B, self.iteration + 1, self.ranks.sum)
        if settings.scale_scores:
            self.score_moments.update(raw_scores_B, self.ranks.sum)
        scores_B = apply_score_rules(
            raw_scores_B,
            rollout.finished_B,
            self.ranks.sum,
            scale=self.score_moments.std,
            score_clip=settings.score_clip,
            missing_eos_score=settings.missing_eos_score,
        )
        return raw_scores_B, scores_B

    def ask_reward_model(self, rollout: Rollout) -> Tensor:
        """Score each response by the reward model, scores_B."""

        def score(max_tokens: int) -> Tensor:
            return score_rollout(self.scorer, rollout, split_alike(self.ranks, rollout, max_tokens))

        return self.budget.attempt(rollout, score)

    def evaluate_tokens(self, rollout: Rollout) -> TokenFigures:
        """Compute what the models say of each sampled token."""

        def evaluate(max_tokens: int) -> TokenFigures:
            micro_batches = split_alike(self.ranks, rollout, max_tokens)
            return evaluate_tokens(self.actor, self.critic, self.reference, rollout, self.sampling.temperature, micro_batches)

        return self.budget.attempt(rollout, evaluate)

    def _compare_engine(self, rollout: Rollout, figures: TokenFigures) -> dict[str, float]:
        """Say how far what the engine that sampled the tokens says of them is from what the trainer says."""
        metrics = describe_engine(rollout, figures, self._importance_cap, self.ranks.sum)
        if self._importance_cap is not None:
            require_same_policy(metrics["rollout/logprob_gap"], self.iteration + 1)
        elif self.iteration == 0:
            require_same_numbers(metrics["rollout/logprob_gap"], precision.is_bfloat16(find_backbone(self.policy)))
        return metrics

    @property
    def _importance_cap(self) -> float | None:
        """Cap of the tokens' importance weights; None for our own engine, whose numbers are the trainer's but for rounding."""
        return self.settings.rollout.importance_cap if self.settings.rollout.engine != "torch" else None

    def _penalize(self, rollout: Rollout, scores_B: Tensor, figures: TokenFigures) -> Tensor:
        mask_BR = rollout.response_mask_BR
        rewards_BR = penalize_kl(scores_B, figures.logprobs_BR, figures.ref_logprobs_BR, mask_BR, self.kl_coef)
        return scale_by_std(rewards_BR, mask_BR, self.ranks.sum) if self.settings.whiten_rewards else rewards_BR

    def _estimate_advantages(self, rollout: Rollout, rewards_BR: Tensor, figures: TokenFigures) -> Experience:
        settings, mask_BR = self.settings, rollout.response_mask_BR
        advantages_BR, returns_BR = estimate_advantages(rewards_BR, figures.values_BR, mask_BR, settings.gamma, settings.gae_lambda)
        advantages_BR = whiten(advantages_BR, mask_BR, self.ranks.sum)
        if self._importance_cap is not None:
            advantages_BR *= compute_importance_weights(figures.logprobs_BR, rollout.engine_logprobs_BR, mask_BR, self._importance_cap)
        return Experience(
            **vars(rollout),
            old_logprobs_BR=figures.logprobs_BR,
            old_values_BR=figures.values_BR,
            advantages_BR=advantages_BR,
            returns_BR=returns_BR,
        )

    def _update(self, experience: Experience) -> UpdateStats:
        # Dropout is off, so training mode changes nothing but this: recomputing activations only works in it.
        for learner in (self.actor, self.critic):
            learner.module.train(self.settings.gradient_checkpointing)
        everything, seed = gather_experience(self.ranks, experience), derive_seed(self.seed, _UPDATE, self.iteration, 0)
        stats = self.updater.update(everything, seed, train_policy=self.trains_policy, told=partial(self.tell, "minibatches"))
        require_finite_update(stats, self.iteration + 1)
        require_finite_weights((self.actor.module, self.critic.module), self.iteration + 1, self.ranks)
        return stats

    def _record(
        self, raw_scores_B: Tensor, scores_B: Tensor, figures: TokenFigures, experience: Experience, stats: UpdateStats
    ) -> dict[str, float]:
        return {
            **describe_rollout(raw_scores_B, scores_B, figures, experience, self.kl_coef, self.ranks.sum),
            **describe_update(stats),
            "policy/trained": float(self.trains_policy),
            "kl_coef": self.kl_coef,
            "lr": self.learning_rate,
            "critic_lr": self.critic_learning_rate,
            "episodes": float((self.iteration + 1) * self.settings.rollout_batch_size),
        }

    def _adapt_kl_coef(self, kl_per_response: float) -> None:
        settings = self.settings
        if settings.kl_target is not None and self.trains_policy:  # a policy that stands still has KL 0, which says nothing of kl_coef
            self.kl_coef = adapt_kl_coef(
                self.kl_coef, kl_per_response, settings.kl_target, settings.rollout_batch_size, settings.kl_horizon
            )

    def save(self, directory: Path, more: dict[str, Any]) -> None:
        """Write all that a resumed run needs, and more plain data with it, into an empty directory; every rank must call it."""
        generators = self.ranks.gather([collect_generator_states()])
        self.actor.save(directory / ACTOR_FILE)
        self.critic.save(directory / _CRITIC_FILE)
        if self.ranks.is_main:
            state = {
                "averages": self.average.averages if self.average else {},
                "iteration": self.iteration,
                "kl_coef": self.kl_coef,
                "score_moments": vars(self.score_moments).copy(),
                "budget": (self.budget.max_tokens, self.budget.may_halve),
                "cursor": self.sampler.cursor,
                "demonstrations_cursor": self.demonstrations.sampler.cursor if self.demonstrations else 0,
                "generators": generators,
            }
            write_state(state | more, directory)
        self.ranks.wait()

    def load(self, directory: Path) -> dict[str, Any]:
        """Go back to what `save` wrote into `directory`, and return what was saved beside the models; every rank must call it."""
        state = read_state(directory)
        self.actor.load(directory / ACTOR_FILE)
        self.critic.load(directory / _CRITIC_FILE)
        self.budget.max_tokens, self.budget.may_halve = state["budget"]
        if self.demonstrations:
            self.demonstrations.sampler.cursor = state["demonstrations_cursor"]
        if self.average:
            self.average.load(state["averages"])
        self.iteration, self.kl_coef, self.sampler.cursor = state["iteration"], state["kl_coef"], state["cursor"]
        self.score_moments = RunningMoments(**state["score_moments"])
        if self.ranks.index < len(state["generators"]):  # more ranks than wrote it: the new ones keep their own
            restore_generator_states(state["generators"][self.ranks.index])
        return state
