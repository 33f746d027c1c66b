"""The contract between the pipeline and a stage process: what it is given, what it says, what it leaves behind. Torch-free.

`python -P -m stages.<stage> SPEC.json` reads a `StageSpec` and leaves these files. P is the pipeline, S the stage's main process:

    file                             written by                read by
    spec.json                        P, before the start       S and its other processes
    events.jsonl (`events_path`)     S while it runs; `error`  P while it runs: progress, failures
                                     by any of its processes
    checkpoint_dir/                  S; removed by P once      S when it is started again
                                     the artifact is there
    output_dir/
      model/         S: the model and its tokenizer            the next stages and people, by `from_pretrained`
                     (LoRA: the adapter)
      merged/        S, only with `lora.merge`: the adapter    the next stages, in place of model/
                     merged into its base
      kept/<n>/      S, PPO with `ppo.keep_every`: as model/   S: evaluate
                     was after iteration n
      evaluation.json S, evaluate: what it found               P: reports
      answers.jsonl  S, sample: prompts with answers to rank   P: `rlhf rank`, as data.answers says
      states.npz     S, sample, where it chooses               P: which arm taught more, see stages.statistics.arms
      metrics.jsonl  S, at the end, from checkpoint_dir        people
      samples.jsonl  S, at the end                             P: `rlhf show`
      result.json    S, last: see stages.result               P: manifest

    metrics.jsonl   a row per logged step: step, and figures under train/ and eval/; PPO: objective/, policy/, val/, rollout/ and more
    samples.jsonl   SFT, PPO: way (sampled, greedy; PPO with an average: ema_...), prompt, response, finished, response_tokens,
                    judge_<figure>; pretrain the same without the last two, its prompt the beginning of a text;
                    PPO: score, kl too. RM: prompt, response, rank, score.
                    Evaluate: see stages.evaluate.results
    events.jsonl    event, time, and by event: see stages.events

A stage knows nothing of versions, caching, aliases or other stages.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from data.formats.format import FormatName
from data.formats.table import ALL_COLUMNS
from data.redact import RedactKind
from data.schema import RecordKind
from stages.blocks import Closed, HardwareSettings, LoRASettings, TokenSettings
from stages.evaluate_settings import EvaluateSettings
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings, StageSettings

StageName = Literal["pretrain", "sft", "rm", "ppo", "evaluate", "sample"]


@dataclass(frozen=True)
class Stage:
    """What the pipeline must know of a stage; a new stage is one more row of `STAGES`, its settings block and its program.

    Args:
        kind: Of the artifact that it makes.
        settings: Class of its block in a recipe.
        models: The models that it reads: role -> the stage that makes it. Where the recipe does not have that stage, or none is named,
            it is the recipe's base model.
        data: The record kinds that it reads, whatever its settings; see `data_inputs`.
        version: Raised by hand when its code changes what it produces; part of the cache key.
        memory_keys: What to lower when it runs out of memory.
        leaves_model: Whether it leaves a model, and checkpoints of one while it runs.
        asked_for: It is run by a command of its own, not by `rlhf run`, and reads the models that are named there: ref -> directory.
    """

    kind: str
    settings: type[StageSettings]
    models: Mapping[str, StageName | None]
    data: tuple[RecordKind, ...]
    version: int
    memory_keys: str
    leaves_model: bool = True
    asked_for: bool = False

    @property
    def parents(self) -> tuple[StageName, ...]:
        """The stages whose artifacts it reads, where the recipe has them."""
        return tuple(maker for maker in self.models.values() if maker is not None)


# In an order in which each comes after its parents. A recipe has all of them, but `pretrain` only with a block of that name.
STAGES: dict[StageName, Stage] = {
    "pretrain": Stage(
        "pretrain",
        PretrainSettings,
        models={"base": None},
        data=("texts",),
        version=1,
        memory_keys="pretrain.micro_batch_size or sequence_length",
    ),
    "sft": Stage("sft", SFTSettings, models={"base": "pretrain"}, data=("demonstrations",), version=5, memory_keys="sft.micro_batch_size"),
    "rm": Stage(
        "rm", RMSettings, models={"sft": "sft"}, data=("comparisons", "demonstrations"), version=5, memory_keys="rm.micro_batch_size"
    ),
    "ppo": Stage(
        "ppo",
        PPOSettings,
        models={"sft": "sft", "rm": "rm"},
        data=("prompts",),
        version=6,
        memory_keys="ppo.max_tokens_per_microbatch or ppo.rollout_micro_batch_size",
    ),
    "evaluate": Stage(
        "evaluation",
        EvaluateSettings,
        models={"base": None, "sft": "sft", "rm": "rm", "ppo": "ppo"},
        data=("prompts", "comparisons"),
        version=3,
        memory_keys="evaluate.batch_size",
        leaves_model=False,
    ),
    "sample": Stage(
        "answers",
        SampleSettings,
        models={},
        data=("prompts",),
        version=1,
        memory_keys="sample.batch_size",
        leaves_model=False,
        asked_for=True,
    ),
}

RUN_STAGES: tuple[StageName, ...] = tuple(name for name, row in STAGES.items() if not row.asked_for)  # which `rlhf run` brings up, in order
RANKINGS_KIND = "rankings"  # made by people, of answers: `rlhf rankings --publish`
# Of what stages make, in their order, not always the stage's name; and of what people make of it.
ARTIFACT_KINDS = (*(row.kind for row in STAGES.values()), RANKINGS_KIND)
MODEL_KINDS = tuple(row.kind for row in STAGES.values() if row.leaves_model)


def with_ancestors(stages: Iterable[StageName]) -> tuple[StageName, ...]:
    """Return stages and all that they descend from, in order."""
    found = set(stages)
    for name in reversed(STAGES):
        if name in found:
            found |= set(STAGES[name].parents)
    return tuple(name for name in STAGES if name in found)


def data_inputs(stage: StageName, settings: StageSettings) -> tuple[RecordKind, ...]:
    """Say which record kinds a stage reads: those of its row, with `ppo.ptx_coef` what `ppo.ptx_data` names, to choose what was ranked."""
    more: tuple[RecordKind, ...] = (settings.ptx_data,) if isinstance(settings, PPOSettings) and settings.ptx_coef > 0 else ()
    more = ("comparisons",) if isinstance(settings, SampleSettings) and settings.choose != "random" else more
    return (*STAGES[stage].data, *more)


def asks_judge(settings: StageSettings) -> bool:
    """Say whether a stage has answers to held-out prompts judged."""
    return isinstance(settings, EvaluateSettings) or (isinstance(settings, SFTSettings | PPOSettings) and settings.eval_samples > 0)


EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_VERIFICATION, EXIT_MISSING, EXIT_RESOURCE = 0, 1, 2, 3, 4, 5
ANSWERED = "answered"  # last line of a program that tries a judge; its exit code may be the judge's
EXIT_WAITING = 6  # for people: `rlhf round`
EXIT_SIGINT, EXIT_SIGTERM = 130, 143

# Raised by hand when the code makes other token ids of the same records, or refuses others.
TOKENS_VERSION = 3

# SLURM signals every process of a job, and a launcher passes its own signal on: SIGTERMs within so many seconds are one wish to stop.
SAME_WISH_S = 1.0

COMPLETE_FILE = "COMPLETE.json"  # of a checkpoint, written last
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")


def checkpoint_name(step: int) -> str:
    """Name the directory of a checkpoint: 12 -> checkpoint-12."""
    return f"checkpoint-{step}"


def parse_checkpoint(name: str) -> int | None:
    """Read a checkpoint directory's name; None for anything that `checkpoint_name` does not write."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match and checkpoint_name(int(match[1])) == name else None


MODEL_DIR, MERGED_DIR, METRICS_FILE, SAMPLES_FILE, RESULT_FILE = "model", "merged", "metrics.jsonl", "samples.jsonl", "result.json"
ANSWERS_FILE, STATES_FILE = "answers.jsonl", "states.npz"
REWARD_MODEL = "rm"  # role of the reward model that chooses what `rlhf sample` shows
KEPT_DIR = "kept"  # models of PPO's iterations, a directory each
BEST_DIR = "best"  # beside the checkpoints of sft and ppo: the model that was best so far, as it was in training
ADAPTER_CONFIG = "adapter_config.json"  # peft's, in model/: names the base


class DataSource(Closed):
    """One record set: a JSONL / JSON / Parquet file, a saved dataset directory, or a Hugging Face dataset id."""

    path: str = Field(description="File, directory or dataset id.")
    split: str | None = Field(None, description="Split of a Hugging Face dataset.")
    subset: str | None = Field(None, description="Configuration name of a Hugging Face dataset.")
    revision: str | None = Field(None, description="Revision of a Hugging Face dataset.")
    format: FormatName | None = Field(None, description="Its format; default: recognised by its first rows (data/README.md).")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Our column -> the source's, such as `{prompt: question, chosen: answer_a}`."
    )

    @field_validator("columns")
    @classmethod
    def _columns_are_ours(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in ALL_COLUMNS:
                near = difflib.get_close_matches(name[:100], ALL_COLUMNS, n=1) or ["prompt"]
                raise ValueError(f"found {name!r:.40}, which no format has; write ours: theirs; did you mean {near[0]}?")
        return columns


class DataSplits(Closed):
    """Training and held-out records of one kind."""

    train: DataSource
    eval: DataSource | None = Field(None, description="Held-out records; default: a share of the training records, split by conversation.")


class StageSpec(Closed):
    """All that a stage process is given; written by the pipeline as JSON."""

    stage: StageName
    settings: StageSettings
    tokens: TokenSettings
    hardware: HardwareSettings
    models: dict[str, str] = Field(
        description="Role (sample: ref, rm; evaluate: judge too; ppo: start too) -> model directory or hub id, per STAGES."
    )
    revision: str | None = Field(None, description="Revision of a base model from the hub.")
    data: dict[str, DataSplits] = Field(description="Record kind -> sources, per `data_inputs`.")
    eval_fraction: float = Field(
        0.05, gt=0, lt=1, description="Share of conversations held out where a kind has no eval source, 2,000 records at most."
    )
    skip_bad: int = Field(0, ge=0, description="Most bad lines to skip, of each source.")
    redact: tuple[RedactKind, ...] = Field((), description="Personal details that are blotted out of each record.")
    forgotten: Path | None = Field(None, description="The store's records/, where records were forgotten: they are left out.")
    judge: str | None = Field(
        None, description="`module:function` that judges held-out answers, where `asks_judge`; never seen in training."
    )
    judge_directory: Path | None = Field(None, description="Where the judge's module may lie, beside what is installed.")
    replies_dir: Path | None = Field(None, description="Where replies of language models are kept, so that nothing is asked twice.")
    seed: int
    tokens_dir: Path | None = Field(None, description="Where token ids are kept (see stages.tokens); default: in checkpoint_dir.")
    fingerprints: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Record kind -> split -> content hash of that source, where the pipeline has read it."
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Source of comparisons (`data.mix.part_of`) -> how often each record is seen in an epoch; default 1.",
    )
    output_dir: Path
    checkpoint_dir: Path
    events_path: Path

    @field_validator("settings", mode="before")
    @classmethod
    def _settings_are_the_stages(cls, value: object, info: ValidationInfo) -> object:
        """Tell the union apart by the stage, whose row names the class."""
        stage: StageName | None = info.data.get("stage")
        return STAGES[stage].settings.model_validate(value) if stage else value


class TokensSpec(Closed):
    """What `stages.tokens` is given, to check the base model and make the token ids of all record sets before the first stage runs."""

    base_model: str
    revision: str | None
    tokens: TokenSettings
    data: dict[RecordKind, DataSplits]
    fingerprints: dict[str, dict[str, str]] = Field(description="Record kind -> split -> content hash of that source.")
    skip_bad: int
    redact: tuple[RedactKind, ...] = Field((), description="As in `StageSpec`.")
    forgotten: Path | None = Field(None, description="As in `StageSpec`.")
    records: dict[str, int] = Field(description="`<kind>.<split>` -> how many records that source has.")
    eval_fraction: float
    seed: int
    adapters: dict[StageName, LoRASettings | None] = Field(description="The `lora` block of each stage of the recipe.")
    stop_tokens: dict[StageName, str | None] = Field(description="`stop_token` of each stage that samples.")
    text_readers: tuple[StageName, ...] = Field((), description="The stages that learn from texts; each has ids of its own.")
    max_rollout_tokens: int = Field(description="Longest response that a stage samples.")
    tokens_dir: Path
    events_path: Path
    report_path: Path = Field(description="Gets what `stages.tokens.make_all` returns; or `problems` of the data.")


def read_spec(path: Path) -> StageSpec:
    """Read a spec."""
    return StageSpec.model_validate_json(path.read_text(encoding="utf-8"))
