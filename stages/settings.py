"""What a user can set for each stage: closed, documented, checked. Torch-free.

Every default, unit and range lives here once; `rlhf config --schema` prints it, the recipes only override it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stages.blocks import Closed, Fraction, LoRASettings, PositiveInt, RolloutSettings
from stages.evaluate_settings import EvaluateSettings, JudgeSettings
from stages.sample_settings import SampleSettings


class _Optimization(Closed):
    """What all stages set about their optimizer (AdamW) and schedule."""

    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="Shape of the decay after the warm-up.")
    min_lr_ratio: Fraction = Field(0.0, description="Final learning rate as a fraction of the peak (cosine and linear).")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Optimizer steps (PPO: iterations) of linear warm-up. Of n, the first is at 0 in pretrain, sft and rm, and at 1/n of "
        "the peak in ppo, where it is a whole rollout.",
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta1.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="AdamW beta2.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this global norm.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass to save memory.")
    lora: LoRASettings | None = Field(None, description="Train low-rank adapters instead of all weights; `lora: {}` takes the defaults.")
    save_every: PositiveInt = Field(500, description="Steps (PPO: iterations) between checkpoints.")
    save_minutes: float | None = Field(
        None,
        gt=0,
        description="Minutes after which a checkpoint is written too, at the end of the step (PPO: iteration) under way; for steps that "
        "take long. null: by save_every alone.",
    )
    log_every: PositiveInt = Field(10, description="Steps (PPO: iterations) between metric rows.")

    @model_validator(mode="after")
    def _decay_shrinks(self) -> "_Optimization":
        """AdamW multiplies each weight by 1 - learning_rate * weight_decay: from 1 on weights are gone, or change their sign and grow."""
        if self.learning_rate * self.weight_decay >= 1:
            found = f"weight_decay = {self.weight_decay:g} takes weights times {1 - self.learning_rate * self.weight_decay:g} in each step"
            needed = f"needed less than 1 / learning_rate = {1 / self.learning_rate:g}"
            raise ValueError(f"{found}, {needed}; lower it")
        return self


class PretrainSettings(_Optimization):
    """Stage 0, continued pre-training on plain texts; loss on every token."""

    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate.")
    epochs: float = Field(1.0, gt=0, description="Passes over the texts.")
    sequence_length: int = Field(
        1024,
        ge=2,
        description="Tokens of a row, at most. Texts are packed into rows, each blind to the others; a longer one is split into pieces, of "
        "which each begins with the last token of the one before.",
    )
    batch_size: PositiveInt = Field(32, description="Rows per optimizer step, over all processes.")
    micro_batch_size: PositiveInt = Field(4, description="Rows per forward pass and process, at most.")
    eval_every: PositiveInt | None = Field(None, description="Optimizer steps between held-out losses; default: once per epoch.")
    eval_samples: Annotated[int, Field(ge=0)] = Field(
        16, description="Held-out texts whose beginning is continued at the end, sampled and greedy."
    )
    trainer_args: dict[str, Any] = Field(default_factory=dict, description="Further fields of TRL's SFTConfig, checked against its names.")

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> "PretrainSettings":
        _check_divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)
        return self


class SFTSettings(_Optimization):
    """Stage 1, supervised fine-tuning on demonstrations; loss on response tokens only."""

    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate.")
    epochs: float = Field(1.0, gt=0, description="Passes over the demonstrations.")
    batch_size: PositiveInt = Field(32, description="Demonstrations per optimizer step, over all processes.")
    micro_batch_size: PositiveInt = Field(8, description="Demonstrations per forward pass and process, at most.")
    packing: bool = Field(
        False, description="Pack whole demonstrations into rows of the maximum length; needs no padding, batch_size then counts rows."
    )
    eval_every: PositiveInt | None = Field(None, description="Optimizer steps between held-out losses; default: once per epoch.")
    eval_samples: Annotated[int, Field(ge=0)] = Field(64, description="Held-out prompts answered at the end, sampled and greedy.")
    publish: Literal["last", "best"] = Field(
        "last",
        description="Which step's model is published: the last, or of those that are evaluated on held-out demonstrations (each "
        "eval_every-th, and the last) the best, by publish_by.",
    )
    publish_by: Literal["loss", "judge"] = Field(
        "loss",
        description="What publish: best goes by: the held-out loss, or what the judge says of eval_samples sampled answers.",
    )
    judge: JudgeSettings | None = Field(
        None,
        description="Who judges there in place of the recipe's judge: a language model (`llm`), which says whether a sampled answer is "
        "better than the demonstration's own (max_cost is that of one evaluation), or a reward model.",
    )
    trainer_args: dict[str, Any] = Field(default_factory=dict, description="Further fields of TRL's SFTConfig, checked against its names.")

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> "SFTSettings":
        _check_divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)
        return self

    @property
    def chooser(self) -> JudgeSettings | None:
        """Who says which step is best, in place of the recipe's judge."""
        return self.judge if self.publish == "best" and self.publish_by == "judge" else None

    @model_validator(mode="after")
    def _answers_what_is_judged(self) -> "SFTSettings":
        if self.publish == "best" and self.publish_by == "judge" and not self.eval_samples:
            raise ValueError("publish_by = judge needs held-out answers, eval_samples = 0 leaves none; raise it, or publish_by: loss")
        return self


class RMSettings(_Optimization):
    """Stage 2, the reward model: all pairs of one prompt's ranked answers in one batch element (InstructGPT 2022, eq. 1)."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    epochs: float = Field(1.0, gt=0, description="Passes over the comparisons; more than one over-fits (InstructGPT, 3.5).")
    batch_size: PositiveInt = Field(32, description="Comparisons (prompts with all their answers) per optimizer step, over all processes.")
    micro_batch_size: PositiveInt = Field(4, description="Comparisons per forward pass and process, at most.")
    eval_every: PositiveInt | None = Field(None, description="Optimizer steps between held-out accuracies; default: once per epoch.")
    scale_scores: bool = Field(
        False, description="Also scale scores so that demonstrations have standard deviation 1; their mean is always made 0."
    )
    margin: Literal["none", "grade"] = Field(
        "none",
        description="`grade`: the better answer of a pair shall score higher by a margin, the larger the further apart the grades of both "
        "are (Llama 2); it needs comparisons with `grades`, 1 to 7 for each answer. Held-out figures are without it.",
    )
    margin_scale: float = Field(
        1.0, gt=0, description="margin: logits at grades 1 and 7, in proportion between; Llama 2 tried 1 (small) and 3 (large)."
    )
    trainer_args: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of TRL's RewardConfig, checked against its names."
    )

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> "RMSettings":
        _check_divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)
        return self


class PPOSettings(_Optimization):
    """Stage 3, PPO (Schulman et al. 2017) against the reward model with a KL penalty (Ziegler et al. 2019)."""

    start: str | None = Field(
        None,
        pattern=r"^ppo@[A-Za-z][A-Za-z0-9_.-]{0,63}$",
        description="Policy at which it begins in place of the SFT model, such as ppo@v1: one that learnt from the same SFT model, to "
        "which the KL penalty stays, with the same ppo.lora. null: the SFT model.",
    )
    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate of the policy.")
    critic_learning_rate: float | None = Field(None, gt=0, description="Peak learning rate of the critic; default: the policy's.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="Shape of the decay after the warm-up.")
    adam_epsilon: float = Field(1e-5, gt=0, description="AdamW epsilon (Ziegler et al. use 1e-5).")
    iterations: PositiveInt = Field(500, description="Rollouts, each followed by its PPO epochs.")
    rollout_batch_size: PositiveInt = Field(64, description="Prompts per rollout, over all processes.")
    minibatch_size: PositiveInt = Field(32, description="Responses per optimizer step, over all processes.")
    max_tokens_per_microbatch: PositiveInt = Field(
        4096, description="Tokens (prompts and responses, no padding) per forward pass and process, in scoring and in the update."
    )
    rollout_micro_batch_size: PositiveInt = Field(64, description="Responses that a process decodes at once.")
    rollout: RolloutSettings = Field(default_factory=lambda: RolloutSettings.model_validate({}), description="What samples the responses.")
    ppo_epochs: PositiveInt = Field(4, description="Passes over each rollout.")
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = Field(
        0, description="First iterations in which only the critic learns; the policy and an adaptive kl_coef stand still."
    )
    share_weights: bool = Field(
        True,
        description="With lora: hold weights that do not learn once for all models that have them; one backbone for all four where the "
        "reward model is an adapter (rm.lora) on the same SFT model. false: four models.",
    )
    max_response_tokens: PositiveInt | None = Field(
        None, description="Longest rollout response in tokens; default: data.max_response_tokens."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature; logits are divided by it for all log-probabilities.")
    stop_token: str | None = Field(
        None,
        min_length=1,
        description="Token, or text of several tokens, that ends a response in place of the end token (which then leaves it unfinished); "
        "default: the end token.",
    )
    missing_eos_score: float | None = Field(
        -1.0,
        description="Highest score of a response that never ended, in the unit of scores (after scale_scores and score_clip). It gets the "
        "lowest of this, its own score, and the mean of the rollout's finished ones less as much: not to end never pays, however low the "
        "policy's answers score. null keeps the reward model's.",
    )
    kl_coef: float = Field(0.05, ge=0, description="Weight of the KL penalty to the reference (the SFT model), per token.")
    kl_target: float | None = Field(
        None,
        gt=0,
        description="Adapt kl_coef towards this KL per response, summed over its tokens (Ziegler et al. 2019, 2.2); null: fixed.",
    )
    kl_horizon: PositiveInt = Field(10_000, description="Responses over which the adaptive kl_coef reacts.")
    gamma: Fraction = Field(1.0, description="Discount.")
    gae_lambda: Fraction = Field(0.95, description="Lambda of generalised advantage estimation.")
    clip_range: float = Field(0.2, gt=0, description="Clip of the probability ratio.")
    value_clip_range: float = Field(0.2, gt=0, description="Clip of the value change around the rollout's values.")
    value_coef: float = Field(
        0.1,
        ge=0,
        description="Weight of the value loss. It hardly acts: the critic has weights and an optimizer of its own (Adam, blind to scale), "
        "so it only moves the gradient's norm against max_grad_norm; critic_learning_rate sets how fast the critic learns. 0: not at all.",
    )
    early_stop_kl: float | None = Field(
        None, gt=0, description="End a rollout's PPO epochs when a minibatch's approximate KL exceeds this."
    )
    ptx_coef: float = Field(
        0.0,
        ge=0,
        description="PPO-ptx (InstructGPT 2022, eq. 2): weight of the negative log-likelihood of demonstrations (or texts, see ptx_data), "
        "mean per response token, in every optimizer step. 0: off.",
    )
    ptx_data: Literal["demonstrations", "texts"] = Field(
        "demonstrations",
        description="What ptx_coef weighs: the demonstrations of SFT, or the texts of pretrain (InstructGPT's pretraining mix) in pieces "
        "of tokens.max_prompt_tokens + tokens.max_response_tokens, every token of which counts as one of a response.",
    )
    ptx_batch_size: PositiveInt | None = Field(
        None,
        description="Demonstrations (or pieces of texts) per optimizer step for ptx_coef, over all processes; default: minibatch_size.",
    )
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Average the policy's weights over the optimizer steps with this decay (InstructGPT 2022, appendix C: 0.992), and "
        "publish the average; held-out evaluation then reports both (`eval/sampled/...` and `eval/ema_sampled/...`). null: off.",
    )
    score_clip: float | None = Field(None, gt=0, description="Clip scores to [-c, c].")
    scale_scores: bool = Field(False, description="Divide scores by their running standard deviation.")
    whiten_rewards: bool = Field(False, description="Divide rewards by their standard deviation, without shifting the mean.")
    eval_every: PositiveInt = Field(50, description="Iterations between evaluations on the fixed held-out prompts.")
    eval_samples: Annotated[int, Field(ge=0)] = Field(64, description="Held-out prompts answered at each evaluation.")
    save_every: PositiveInt = Field(50, description="Iterations between checkpoints.")
    keep_every: PositiveInt | None = Field(
        None,
        description="Keep the model (with lora: the adapter) of each n-th iteration in the artifact, for evaluate: whether it was still "
        "better, or only better at fooling the reward model. null: none.",
    )
    publish: Literal["last", "best"] = Field(
        "last",
        description="Which iteration's model is published: the last, or of those that are evaluated on the held-out prompts (each "
        "eval_every-th, and the last) the best, by publish_by at a KL within publish_max_kl.",
    )
    publish_by: Literal["score", "judge"] = Field(
        "score",
        description="What publish: best goes by: the reward model's score, which PPO was trained on, or the judge's, which it was not.",
    )
    publish_max_kl: float | None = Field(
        None,
        gt=0,
        description="Highest held-out KL to the SFT model, in nats per response, at which an iteration can be the best; where none is "
        "within it, the last is published, with a warning. null: no bound.",
    )
    log_every: PositiveInt = Field(1, description="Iterations between metric rows.")

    @model_validator(mode="after")
    def _sizes_divide(self) -> "PPOSettings":
        _check_divides("minibatch_size", self.minibatch_size, "rollout_batch_size", self.rollout_batch_size)
        return self

    @model_validator(mode="after")
    def _critic_warmup_ends(self) -> "PPOSettings":
        if self.critic_warmup_iterations >= self.iterations:
            raise ValueError(
                f"critic_warmup_iterations = {self.critic_warmup_iterations} leaves no iteration to the policy, with iterations = "
                f"{self.iterations}; choose fewer"
            )
        return self

    @model_validator(mode="after")
    def _evaluates_what_it_publishes(self) -> "PPOSettings":
        if self.publish == "best" and not self.eval_samples:
            raise ValueError("publish = best needs held-out answers, eval_samples = 0 leaves none; raise it, or publish: last")
        if self.publish == "best" and self.eval_every >= self.iterations:
            found = f"eval_every = {self.eval_every} and iterations = {self.iterations}"
            raise ValueError(f"publish = best has only the last iteration to choose from, with {found}; lower eval_every, or publish: last")
        return self


def _check_divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        raise ValueError(f"{large_name} = {large} is not a multiple of {small_name} = {small}; choose sizes that divide")


TrainingSettings = PretrainSettings | SFTSettings | RMSettings | PPOSettings
StageSettings = TrainingSettings | EvaluateSettings | SampleSettings
