"""What a user can set for each stage: closed, documented, checked. Torch-free.

Every default, unit and range lives here once; `rlhf config --schema` prints it, the recipes only override it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
TEMPLATE_KEYWORDS = ("auto", "chatml", "plain")  # of tokens.chat_template; anything else is a file, or a template of the tokenizer's

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Closed(BaseModel):
    """A settings block: an unknown key is an error, and nothing changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # built at first use: `rlhf ls` uses few


class TokenSettings(Closed):
    """The one token stream that all three stages share: its length limits, its chat template, its end token."""

    max_prompt_tokens: PositiveInt = Field(
        512, description="Longest prompt, chat template included, in tokens; longer ones are cut and counted."
    )
    max_response_tokens: PositiveInt = Field(
        512,
        description="Longest response, end token included, in tokens; longer demonstrations and ranked answers are dropped and counted.",
    )
    chat_template: str = Field(
        "auto",
        min_length=1,
        description="What renders conversations: `auto` (the tokenizer's own, of several the one named `default`; without one ChatML where "
        "the vocabulary has its two tokens, else `plain`), `chatml`, `plain` (`User:` and `Assistant:` as text, no new tokens), the name "
        "of one of the tokenizer's templates, or the path of a Jinja file.",
    )
    template_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Values of the template's variables, such as `enable_thinking: false`, `tools` or `date_string`; they are written into "
        "the template that the model is published with. `date` (YYYY-MM-DD) is also the day at which a template's clock stands still.",
    )
    end_token: str = Field(
        "auto",
        min_length=1,
        description="Token that ends an answer: `auto` is what the chat template writes after one, else the tokenizer's own; or one token "
        "of the vocabulary.",
    )

    @field_validator("template_args")
    @classmethod
    def _names_are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not name.isidentifier() or name in ("messages", "add_generation_prompt"):
                raise ValueError(
                    f"found {name!r}, needed a variable of the chat template that is not set by each call; choose another name"
                )
        return value


class LoRASettings(Closed):
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning; the artifact is then an adapter."""

    rank: PositiveInt = Field(16, description="Rank r of the update matrices.")
    alpha: PositiveInt = Field(32, description="Scale: the update is multiplied by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout on the adapter's input during training.")
    target_modules: str | list[str] = Field("all-linear", description="Modules that get an adapter: `all-linear` or a list of names.")
    quantize: Literal["nf4"] | None = Field(
        None,
        description="Hold the frozen linear layers in 4 bits, by bitsandbytes: `nf4` (QLoRA, Dettmers et al. 2023), 0.52 bytes a weight. "
        "The artifact is an adapter on the base as it lies on the disk, with which it computes slightly other numbers. Set it alike in rm "
        "and ppo, so that PPO asks the very reward model that was trained. null: in the precision that hardware.precision says.",
    )
    merge: bool = Field(
        False, description="Also write the adapter merged into its base, as `merged/`; needed where the next stage trains LoRA on top."
    )

    @field_validator("target_modules")
    @classmethod
    def _names_are_a_list(cls, value: str | list[str]) -> str | list[str]:
        """Refuse text that reads as names; peft would take it for one regular expression."""
        if isinstance(value, str) and value != "all-linear" and re.fullmatch(r"[\w.-]+([,;\s]+[\w.-]+)*", value):
            names = ", ".join(re.split(r"[,;\s]+", value))
            raise ValueError(f"found the text {value!r}, needed all-linear or a list of names; write [{names}]")
        return value


class HardwareSettings(Closed):
    """Where and in which precision a stage runs."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes the GPU when there is one.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Compute precision of forward and backward, and of weights in frozen linear layers; weights that learn, "
        "their optimizer and all statistics stay float32. `auto` is bfloat16 where the GPU or the CPU states that it has instructions for "
        "it, else float32; the manifest tells which it was.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto",
        description="Attention kernel; `auto` computes sequences of unequal length without padding and a prompt once for all its answers "
        "(a model that cannot is padded as with the others, and the log says so).",
    )
    compile: bool = Field(
        False,
        description="Compile the transformer's layers (torch.compile) for training and scoring: about a minute at the start; what it "
        "brings then depends on the device.",
    )
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads of a stage process; 0 leaves torch's default.")
    processes: PositiveInt = Field(1, description="Processes on each node (one per GPU).")
    nodes: PositiveInt = Field(1, description="Machines; they see the same store.")
    engine: Literal["auto", "none", "ddp", "deepspeed"] = Field(
        "auto",
        description="How several processes compute together: `deepspeed` shares out what zero_stage says, `ddp` averages gradients only; "
        "`auto` takes DeepSpeed where there are several GPUs, DDP for several processes on CPUs.",
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] = Field(
        2,
        description="What DeepSpeed shares out over all processes: 1 the optimizer's state, 2 and the gradients, 3 and the weights; "
        "0 nothing, which is `ddp`.",
    )
    offload_optimizer: bool = Field(False, description="DeepSpeed: keep the optimizer's state in the CPU's memory.")
    offload_parameters: bool = Field(False, description="DeepSpeed at zero_stage 3: keep the weights in the CPU's memory.")
    hostfile: str | None = Field(
        None,
        description="Path of a file with the nodes, one per line: `node0 slots=8 address=10.0.0.1`; slots and address may be left out.",
    )
    remote_shell: str = Field(
        "ssh -o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3 {host} {command}",
        description="How a command is run on a node of the hostfile; {command} is one line for a shell there.",
    )
    sbatch: list[str] = Field(
        default_factory=list,
        description="More options of SLURM's sbatch for `rlhf run --slurm`, such as --partition=gpu or --time=24:00:00.",
    )
    restarts: Annotated[int, Field(ge=0)] = Field(
        0, description="How often torchrun starts the processes again, from the last checkpoint, after one of them failed."
    )
    deepspeed_config: str | None = Field(
        None, description="Path of a JSON with more of DeepSpeed's settings, laid over those that this block makes."
    )

    @property
    def computes_in_bfloat16(self) -> bool:
        """Whether products are in bfloat16.

        Raises:
            ValueError: precision is `auto`, which a stage process settles before anything asks.
        """
        if self.precision == "auto":
            raise ValueError("hardware.precision = auto is not settled yet; needed: float32 or bfloat16 (stages.process.machine)")
        return self.precision == "bfloat16"

    @model_validator(mode="after")
    def _offloads_what_is_shared_out(self) -> "HardwareSettings":
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters needs zero_stage: 3, found {self.zero_stage}")
        return self


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
    adam_beta1: Fraction = Field(0.9, description="AdamW beta1.")
    adam_beta2: Fraction = Field(0.95, description="AdamW beta2.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this global norm.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass to save memory.")
    lora: LoRASettings | None = Field(None, description="Train low-rank adapters instead of all weights; `lora: {}` takes the defaults.")
    save_every: PositiveInt = Field(500, description="Steps (PPO: iterations) between checkpoints.")
    log_every: PositiveInt = Field(10, description="Steps (PPO: iterations) between metric rows.")


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
    trainer_args: dict[str, Any] = Field(default_factory=dict, description="Further fields of TRL's SFTConfig, checked against its names.")

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> "SFTSettings":
        _check_divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)
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
    trainer_args: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of TRL's RewardConfig, checked against its names."
    )

    @model_validator(mode="after")
    def _micro_batch_divides_batch(self) -> "RMSettings":
        _check_divides("micro_batch_size", self.micro_batch_size, "batch_size", self.batch_size)
        return self


class RolloutSettings(Closed):
    """What samples PPO's responses. The log-probabilities that PPO learns from are the trainer's own in either case."""

    engine: Literal["torch", "vllm"] = Field(
        "torch",
        description="`torch`: the stage's own processes, by the policy's own forward; `vllm`: a vLLM server, which is given the policy's "
        "weights (with lora: the adapter) before each rollout. It pays for long responses and large models; a resumed run is then no "
        "longer the same to the last bit.",
    )
    command: list[str] = Field(
        ["vllm"],
        min_length=1,
        description="vllm: what starts a server, from an environment of its own, up to the word `serve`; for instance "
        "[env, CUDA_VISIBLE_DEVICES=7, /opt/vllm/bin/vllm]. It runs on the first node for as long as the stage.",
    )
    options: list[str] = Field(
        default_factory=list, description="vllm: further options of `vllm serve`, for instance [--tensor-parallel-size, '2']."
    )
    server: str | None = Field(
        None,
        pattern=r"^https?://",
        description="vllm: address of a server that runs already, instead of one that the stage starts; it must see the store's files.",
    )
    importance_cap: float = Field(
        2.0,
        ge=1,
        description="vllm: largest weight of a token in the policy loss: the trainer's probability of it over the server's, since they "
        "differ by more than rounding (truncated importance sampling).",
    )


class PPOSettings(_Optimization):
    """Stage 3, PPO (Schulman et al. 2017) against the reward model with a KL penalty (Ziegler et al. 2019)."""

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


def _check_divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if large % small:
        raise ValueError(f"{large_name} = {large} is not a multiple of {small_name} = {small}; choose sizes that divide")


StageSettings = PretrainSettings | SFTSettings | RMSettings | PPOSettings
