"""The settings blocks that stages share: tokens, low-rank adapters, hardware. Closed, documented, checked. Torch-free."""

import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data.secrets import names_secret

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
                    f"found {name!r:.60}, needed a variable of the chat template that is not set by each call; choose another name"
                )
        return value


class LoRASettings(Closed):
    """Low-rank adapters (Hu et al. 2021) instead of full fine-tuning; the artifact is then an adapter."""

    rank: PositiveInt = Field(16, le=65_536, description="Rank r of the update matrices; no model's are wider than the most.")
    alpha: PositiveInt = Field(32, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input during training.")
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
            meant = "all-linear" if value.lower() in ("all", "all_linear", "linear") else f"[{names:.200}]"
            raise ValueError(f"found the text {value!r:.60}, needed all-linear or a list of names; write {meant}")
        return value


class EndpointSettings(Closed):
    """A model behind an OpenAI-compatible address: of a provider, or of vLLM, llama.cpp, Ollama on a machine of one's own."""

    url: str = Field(
        description="Address up to `/chat/completions`, such as https://api.openai.com/v1 or http://localhost:8000/v1.",
    )
    model: str = Field(min_length=1, max_length=200, description="Name of the model, as that server knows it.")
    api_key_env: str | None = Field(
        None,
        description="Name of the environment variable that holds the key, such as OPENAI_API_KEY. null: no key.",
    )
    price_per_1m_input: float | None = Field(None, ge=0, description="Price of a million tokens that it reads, in any currency.")
    price_per_1m_output: float | None = Field(None, ge=0, description="Price of a million tokens that it writes, in the same currency.")
    max_cost: float | None = Field(
        None, gt=0, description="Most that its replies may cost, in the same currency; what would go beyond is not asked. null: no limit."
    )
    max_reply_tokens: PositiveInt = Field(1024, description="Longest reply in tokens; a model that thinks first needs more.")
    concurrency: PositiveInt = Field(8, le=256, description="Requests at once.")
    timeout_s: float = Field(120.0, gt=0, le=3600, description="Seconds until a request counts as lost.")
    retries: Annotated[int, Field(ge=0, le=50)] = Field(
        6,
        description="How often a request is sent again after 429, 5xx or silence: after the pause that it asks for, or a growing one.",
    )
    request: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of the request, laid over ours; null leaves one of ours out. Such as {max_tokens: null, "
        "max_completion_tokens: 2000, temperature: null} for models that refuse ours.",
    )

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s@?#]+", value):
            raise ValueError(
                f"found {value!r:.100}, needed http:// or https:// and an address without a password; such as http://host:8000/v1"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _name_is_blotted(cls, value: str | None) -> str | None:
        """Values of variables that read as secret are blotted out of all that is written."""
        if value is not None and not (re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) and names_secret(value)):
            # What is no name may be the key.
            found = f"{value!r:.60}, not" if value.isidentifier() else "no name, and not"
            needed = "needed the name of an environment variable that reads so, as logs blot out its value"
            raise ValueError(f"found {found} the name of a secret; {needed}; name it such as OPENAI_API_KEY")
        return value

    @model_validator(mode="after")
    def _limit_has_prices(self) -> "EndpointSettings":
        if self.max_cost is not None and (self.price_per_1m_input is None or self.price_per_1m_output is None):
            raise ValueError(f"max_cost = {self.max_cost:g} needs price_per_1m_input and price_per_1m_output to count by; give both")
        return self


MAX_THREADS = 1024  # ran, 90 s a step on two cores; with 2,048 the backward pass of SFT died by SIGSEGV


class HardwareSettings(Closed):
    """Where and in which precision a stage runs."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes the GPU when there is one.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Compute precision of forward and backward, and of weights in frozen linear layers; weights that learn, "
        "their optimizer and all statistics stay float32. `auto` is bfloat16 where the GPU or the CPU states that it has instructions for "
        "it, else float32; the manifest tells which it was.",
    )
    tf32: bool = Field(
        False,
        description="On a GPU, compute float32 products by 10 bits of the mantissa instead of 23 (TF32): several times as fast, and no "
        "longer the reference that float32 is.",
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
    threads: Annotated[int, Field(ge=0, le=MAX_THREADS)] = Field(
        0, description="CPU threads of a stage process; 0: torch's default, and no more than a container has the time for."
    )
    processes: PositiveInt = Field(1, le=1024, description="Processes on each node (one per GPU).")
    nodes: PositiveInt = Field(1, le=65_536, description="Machines; they see the same store.")
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
    price_per_gpu_hour: float | None = Field(
        None, ge=0, description="What one GPU costs you an hour, in dollars, for `rlhf plan --cost`; null: what sellers list."
    )
    price_per_gb_month: float | None = Field(
        None, ge=0, description="What a gigabyte on the store's disk costs you a month, in dollars, for `rlhf plan --cost`."
    )
    deepspeed_config: str | None = Field(
        None, description="Path of a JSON with more of DeepSpeed's settings, laid over those that this block makes."
    )

    @field_validator("remote_shell")
    @classmethod
    def _words_are_whole(cls, value: str) -> str:
        try:
            shlex.split(value)
        except ValueError as error:
            raise ValueError(f"found {value!r:.60}, needed words as a shell splits them ({error}); close the quotes") from None
        return value

    @field_validator("sbatch")
    @classmethod
    def _options_are_lines(cls, value: list[str]) -> list[str]:
        """Each becomes a line of a batch script, which must not become two."""
        for option in value:
            if not option.startswith("-") or not option.isprintable():
                raise ValueError(f"found {option!r:.60}, needed options of sbatch on one line each; write them such as --time=24:00:00")
        return value

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


# Of a GPU's memory, what a vLLM server takes while awake, where the stage needs some too: its models lie there meanwhile.
AWAKE_SHARE = 0.4


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
    sleep: bool | None = Field(
        None,
        description="vllm: the server gives the GPU's memory to the stage while nobody asks it (vLLM's sleep mode). Default: where the "
        "stage computes on a GPU, starts the server, and `command` gives that no GPU of its own (CUDA_VISIBLE_DEVICES); it then takes 0.4 "
        "of the memory while awake, or the --gpu-memory-utilization of `options`. A server that runs already must have been started with "
        "VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode.",
    )
    importance_cap: float = Field(
        2.0,
        ge=1,
        description="vllm, in PPO alone: largest weight of a token in the policy loss: the trainer's probability of it over the server's, "
        "since they differ by more than rounding (truncated importance sampling).",
    )
