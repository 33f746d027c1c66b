"""What a trace is given and what it reports: the contract between `rlhf plan --cost` and `stages.tracing`. Torch-free.

`python -P -m stages.tracing SPEC.json` reads a `TraceSpec` and writes a `TraceReport` to `report_path`.
"""

from pathlib import Path
from typing import Any

from pydantic import Field

from data.schema import RecordKind
from stages.blocks import Closed, HardwareSettings, LoRASettings, TokenSettings
from stages.settings import StageSettings
from stages.spec import STAGES, DataSplits, StageName

FEW_ROWS = "decode by few rows"  # phase of a decoder, beside `decode`


class TraceSpec(Closed):
    """Which stages are traced, with which settings."""

    base_model: str
    revision: str | None = None
    tokens: TokenSettings
    hardware: HardwareSettings = Field(description="With a precision that is settled.")
    stages: dict[StageName, dict[str, Any]] = Field(description="Stage -> its settings.")
    reward_lora: LoRASettings | None = Field(None, description="The reward model's adapter, which PPO can put on its own backbone.")
    processes: int = Field(1, description="On all nodes.")
    shares: bool = Field(False, description="Whether DeepSpeed or DDP holds the gradients: they are then counted by formula, not traced.")
    on_gpu: bool = Field(False, description="Whether kernels of a GPU will run.")
    kept: int = Field(0, description="Models that PPO keeps of its iterations, which evaluate asks too.")
    answers: int = Field(default=2, ge=2, description="Ranked answers of a comparison, where no data tells.")
    data: dict[RecordKind, DataSplits] = Field(
        default_factory=dict[RecordKind, DataSplits], description="Sources on this machine, of which lengths are read."
    )
    timed: bool = Field(False, description="Whether seconds are wanted too: after bytes are counted, it is run with real weights.")
    measure: bool = Field(default=False, description="Run with real weights and measure seconds, in place of counting bytes.")
    at_once: int = Field(1, ge=1, description="Processes that measure the same at once, as many as will run on this machine.")
    memory: int = Field(0, description="Bytes that this machine has for each of them, of which measuring may take a part.")
    peaks: dict[StageName, tuple[int, int]] = Field(
        default_factory=dict[StageName, tuple[int, int]], description="Bytes at a stage's peak, at the two depths at which it was traced."
    )
    flops: dict[StageName, tuple[int, int]] = Field(
        default_factory=dict[StageName, tuple[int, int]], description="Operations of all phases of a stage, at the same two depths."
    )
    longest: dict[RecordKind, tuple[int, int]] = Field(
        default_factory=dict[RecordKind, tuple[int, int]], description="Longest prompt and answer in tokens, of kinds read whole."
    )
    largest: dict[RecordKind, list[int]] = Field(default_factory=dict[RecordKind, list[int]], description="As in `Lengths`.")
    report_path: Path

    def find_longest(self, kind: RecordKind) -> tuple[int, int]:
        """Say how long a prompt and an answer of a kind can be: as the longest on this machine, else as the limits allow."""
        return self.longest.get(kind, (self.tokens.max_prompt_tokens, self.tokens.max_response_tokens))

    def count_most(self, kind: RecordKind, records: int) -> int | None:
        """Count the tokens that so many records can have at most, those of the largest together; None: they were not read whole."""
        found = self.largest.get(kind)
        return sum(found[:records]) + found[-1] * max(records - len(found), 0) if found else None

    def to_measure(self, traced: "TraceReport") -> "TraceSpec":
        """Say how seconds are measured once bytes are counted: on records of mean length, as deep as their peaks allow."""
        tokens, answers = self.tokens, 2
        if read := traced.lengths.get("demonstrations"):
            most = {"max_prompt_tokens": max(round(read.prompt), 1), "max_response_tokens": max(round(read.response), 1)}
            tokens = tokens.model_copy(update=most)
        if read := traced.lengths.get("comparisons"):
            answers = max(round(read.answers), 2)

        def list_phases(stage: StageName) -> list[list[Phase]]:
            depths = traced.stages[stage].depths
            return [list(depth.phases.values()) for depth in (depths[0], depths[-1])]

        peaks = {stage: tuple(max(phase.peak for phase in phases) for phases in list_phases(stage)) for stage in traced.stages}
        flops = {stage: tuple(sum(phase.flops for phase in phases) for phases in list_phases(stage)) for stage in traced.stages}
        given = {"tokens": tokens, "answers": answers, "data": {}, "peaks": peaks, "flops": flops}
        return self.model_copy(update=given | {"timed": False, "measure": True})

    def settings(self, stage: StageName) -> StageSettings:
        """Read the settings of a stage."""
        return STAGES[stage].settings.model_validate(self.stages[stage])


class Phase(Closed):
    """What one phase of a stage needs, at one depth; of a phase that comes several times, the most."""

    start: int = Field(description="Bytes that live when it begins.")
    peak: int = Field(description="Bytes at its peak.")
    flops: int = Field(description="Floating-point operations of products and attention.")
    seconds: float = Field(
        0.0, description="Where it ran with real weights: alone what it computed, whatever else the machine did; among others by the clock."
    )


class Depth(Closed):
    """A stage traced with so many layers."""

    layers: int
    phases: dict[str, Phase]
    parameters: int = Field(description="Weights of one base model.")
    learning: list[int] = Field(description="Weights that learn, of each model in training.")
    accumulates: bool = Field(False, description="Whether an optimizer step has several micro-batches.")
    held: int = Field(description="Bytes of all weights as they are held in training.")
    whole: int = Field(description="Bytes of the policy's weights, which a rollout gathers at ZeRO stage 3.")
    small: list[int] = Field(
        default_factory=list[int],
        description="Bytes of weights of at most 100,000 numbers, of each model in training; what they share, once.",
    )
    passed: int = Field(default=0, description="Bytes of larger frozen weights of SFT or RM to which no backward comes.")
    largest: int = Field(default=0, description="Bytes of the largest weight in float32, which loading holds whole at ZeRO stage 3.")
    narrow: int = Field(default=0, description="Bytes of the bfloat16 copy by which a GPU with room for it decodes, in those phases.")
    captured: bool = Field(default=False, description="Whether a GPU decodes by CUDA graphs, where no weight is shared out.")
    cache: int = Field(default=0, description="Bytes of keys and values of one token.")
    row: int = Field(default=0, description="Operations of one token on its way through the policy, where a server decodes.")
    checkpoint: int = Field(description="Bytes of a checkpoint on the disk, in one process.")
    output: int = Field(description="Bytes of the published model, without its tokenizer.")
    kept: int = Field(default=0, description="The same of the model of an iteration that PPO keeps beside it.")
    best: int = Field(default=0, description="Bytes of what is held of one that may be the best so far.")


class StageTrace(Closed):
    """A stage at two depths or more, between which everything is linear, and how deep the model is."""

    layers: int
    depths: list[Depth]
    tokens: dict[str, int] = Field(description="Phase -> tokens that went through it.")
    intervals_s: float = Field(0.0, description="Seconds of what evaluate says in the end, where they were measured.")


class Lengths(Closed):
    """How long the records of a kind are, in tokens on average, and how many there are."""

    records: int = Field(description="To train on.")
    held_out: int = Field(description="In a source of their own; 0 where they are split off.")
    prompt: float
    response: float = Field(description="Of each answer.")
    answers: float
    most_answers: int
    longest: tuple[int, int] | None = Field(
        default=None, description="Longest prompt and answer in tokens, of all splits; None: too many to be read."
    )
    largest: list[int] = Field(
        default_factory=list[int], description="Tokens of the largest records, prompt and all answers; empty: too many to be read."
    )
    quantiles: list[int] = Field(default_factory=list[int], description="Tokens of the responses, at each tenth from the shortest on.")


class TraceReport(Closed):
    """Of all stages."""

    lengths: dict[RecordKind, Lengths] = Field(default_factory=dict[RecordKind, Lengths])
    stages: dict[StageName, StageTrace] = Field(default_factory=dict[StageName, StageTrace])
    timed: dict[StageName, StageTrace] = Field(
        default_factory=dict[StageName, StageTrace], description="The same with seconds, on records of mean length, where they were wanted."
    )
    resident: int = Field(description="Bytes that a stage process holds before it opens a model: libraries.")
    import_s: float = Field(description="CPU seconds of importing them.")
    tried_s: float = Field(default=0.0, description="CPU seconds of trying what the base model's family can do, as each stage does.")
    read_s: float = Field(default=0.0, description="CPU seconds of reading a byte of weights from a file; 0: not measured.")
    write_s: float = Field(default=0.0, description="The same of writing one.")
    crowded: float = Field(default=0.0, description="Cores that were wanted, but that other programs kept busy meanwhile, on average.")
    error: str = ""
