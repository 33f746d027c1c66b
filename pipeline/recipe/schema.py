"""What a recipe can say: one closed model over the stages' settings. Torch-free."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import Field, PrivateAttr

from data.redact import RedactKind
from pipeline.ranking.settings import Settings as RankingSettings
from pipeline.recipe.sources import ComparisonSplits
from pipeline.recipe.yaml_lines import Document
from stages.blocks import Closed, HardwareSettings, TokenSettings
from stages.evaluate_settings import EvaluateSettings
from stages.sample_settings import SampleSettings
from stages.settings import PPOSettings, PretrainSettings, RMSettings, SFTSettings, StageSettings
from stages.spec import RUN_STAGES, STAGES, DataSplits, StageName
from stages.track_spec import Tracker


@dataclass(frozen=True)
class _Origin:
    """The document that a recipe was read from; recipes that say the same are equal wherever they were read."""

    document: Document | None = field(default=None, compare=False)


class RecipeData(Closed):
    """Where the records come from. A plain string stands for its `path`; `demo` for the embedded example."""

    texts: DataSplits | None = Field(None, description="Plain texts: continued pre-training, and PPO with `ppo.ptx_data: texts`.")
    demonstrations: DataSplits | None = Field(None, description="Prompts with good answers: SFT, and the zero of the reward model's scale.")
    comparisons: ComparisonSplits | None = Field(None, description="Prompts with ranked answers: the reward model.")
    prompts: DataSplits | None = Field(None, description="Prompts to answer: PPO.")
    eval_fraction: float = Field(
        0.05, gt=0, lt=1, description="Share of conversations held out where a kind has no eval source, 2,000 records at most."
    )
    skip_bad: int = Field(0, ge=0, description="Most bad lines to skip, of each source; each one skipped is named in the artifact.")
    redact: list[RedactKind] = Field(
        default_factory=list[RedactKind],
        description="Personal details that are blotted out of every record before tokens are made of it: email, phone, card (with its "
        "check digit), ip, key (tokens and keys of known shapes). Names and streets are not found.",
    )
    samples: Literal["on", "off", "redacted"] = Field(
        "on",
        description="Whether samples.jsonl, which holds held-out prompts and answers, is published: as it is, not at all, or with the "
        "details of data.redact (without it, all kinds) blotted out.",
    )


class RoundSettings(Closed):
    """The rounds of `rlhf round`: the policy answers (block `sample`), people rank (`ranking`), reward model and policy are made anew."""

    weight: float = Field(1.0, gt=0, le=100, description="How often each ranking of a round is seen in an epoch of the reward model.")
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of a round's conversations that is held out, in all later rounds too.")
    start: Literal["sft", "policy"] = Field(
        "sft",
        description="Where PPO begins in a round after the first: at the SFT model, so that nothing is handed on of what the last policy "
        "learnt of an older reward model's blind spots (Bai et al. 2022, 4.5, train anew on all comparisons); or at the last policy, which "
        "takes fewer iterations (Llama 2, 3.2.3, goes on from the last model). The KL penalty is to the SFT model in both.",
    )
    price_per_ranking: float | None = Field(
        None, ge=0, description="What one ranking of a prompt's answers costs you, in dollars, for `rlhf plan --cost`."
    )
    with_sft: bool = Field(False, description="The SFT model answers in turn with the policy, so that old and new answers are compared.")


class Recipe(Closed):
    """One whole (pretrain ->) SFT -> RM -> PPO training, and its evaluation: base model, data, the stages, hardware."""

    name: str = Field("recipe", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name, for people; default: that of the file.")
    seed: int = Field(11, ge=0, lt=2**31, description="Seed of training: data order, initial heads, sampling.")
    base_model: str = Field(description="Pretrained model: a directory, a hub id, or `demo` (`demo@SEED`) for the embedded one.")
    revision: str | None = Field(None, description="Revision of a base model from the hub; pin a commit.")
    data: RecipeData
    tokens: TokenSettings = Field(
        default_factory=lambda: TokenSettings.model_validate({}), description="Length limits of prompts and responses."
    )
    pretrain: PretrainSettings | None = Field(
        None, description="Stage 0, continued pre-training of the base model; `pretrain: {}` takes the defaults. null: no such stage."
    )
    sft: SFTSettings = Field(default_factory=lambda: SFTSettings.model_validate({}), description="Stage 1, supervised fine-tuning.")
    rm: RMSettings = Field(default_factory=lambda: RMSettings.model_validate({}), description="Stage 2, the reward model.")
    ppo: PPOSettings = Field(default_factory=lambda: PPOSettings.model_validate({}), description="Stage 3, PPO.")
    evaluate: EvaluateSettings | None = Field(
        default_factory=lambda: EvaluateSettings.model_validate({}), description="Stage 4, evaluation. null: no such stage."
    )
    sample: SampleSettings = Field(
        default_factory=lambda: SampleSettings.model_validate({}), description="Answers for people to rank: `rlhf sample`, `rlhf round`."
    )
    ranking: RankingSettings = Field(
        default_factory=lambda: RankingSettings.model_validate({}),
        description="How people rank answers (`rlhf rank --recipe`); it changes nothing of what the stages make.",
    )
    rounds: RoundSettings | None = Field(
        None, description="The rounds of `rlhf round`, which `rlhf plan` then shows too; null: the defaults, and plan shows none."
    )
    hardware: HardwareSettings = Field(
        default_factory=lambda: HardwareSettings.model_validate({}), description="Where and in which precision."
    )
    judge: str | None = Field(
        None,
        description="`module:function` that judges held-out answers, never seen in training: (prompt, response, finished) -> figures such "
        "as {score: 0.7}. The module is installed, on PYTHONPATH or beside the recipe.",
    )
    judge_directory: str | None = Field(
        None,
        description="Directory in which the modules of judge and evaluate.probes may lie; default: the recipe's (for a packaged recipe, "
        "the working directory).",
    )
    tracking: list[Tracker] = Field(
        default_factory=list[Tracker],
        description="Where the rows of metrics.jsonl go too: tensorboard, trackio, mlflow, wandb; each needs `pip install 'rlhf[<name>]'`. "
        "They change nothing of what is made.",
    )
    private: bool = Field(
        False,
        description="Let nobody but the owner read what a run makes (artifacts, logs, checkpoints, token ids: they hold real prompts). "
        "Otherwise the umask decides.",
    )
    store: str = Field(
        "store", description="Directory of artifacts and runs; `--store` overrides it. Default: `store` in the working directory."
    )

    _origin: _Origin = PrivateAttr(default=_Origin())

    def model_post_init(self, context: Any) -> None:
        """Keep the document that it was read from, given as validation context."""
        self._origin = _Origin(context if isinstance(context, Document) else None)

    def place(self, key: str) -> str:
        """Say where a key stands, for messages: `recipe.yaml:12`, `--set`."""
        document = self._origin.document
        return document.place(tuple(key.split("."))) if document else "recipe"

    def settings(self, stage: StageName) -> StageSettings:
        """Return the settings block of one stage; what evaluation and sampling do not set of answers is as in PPO."""
        settings = cast("StageSettings", getattr(self, stage))
        if isinstance(settings, EvaluateSettings | SampleSettings):
            unset = [name for name in ("max_response_tokens", "temperature", "stop_token") if getattr(settings, name) is None]
            update = {name: getattr(self.ppo, name) for name in unset}
            if isinstance(settings, SampleSettings) and "max_response_tokens" in unset:
                # As a record of the reward model an answer that was cut gets an end token, which counts there.
                room = max(1, self.tokens.max_response_tokens - 1)
                update["max_response_tokens"] = min(self.ppo.max_response_tokens or room, room)
            return settings.model_copy(update=update)
        return settings

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that `run` brings up, in order: `pretrain` only with a block of that name, `evaluate` unless that is null."""
        return tuple(stage for stage in RUN_STAGES if getattr(self, stage) is not None)

    def parents(self, stage: StageName) -> tuple[StageName, ...]:
        """Return the stages whose artifacts a stage reads: without `pretrain`, SFT reads none, but the base model."""
        return tuple(parent for parent in STAGES[stage].parents if parent in self.stages)


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    for name in ("DataSource", "DataSplits", "RecipeData", "PartSource", "ComparisonSource", "ComparisonSplits"):
        block = schema["$defs"][name]
        schema["$defs"][name] = {"anyOf": [{"type": "string", "description": "Shorthand for the path."}, block]}
    parts = {"type": "array", "items": {"$ref": "#/$defs/PartSource"}, "description": "Shorthand for parts."}
    schema["$defs"]["ComparisonSource"]["anyOf"].append(parts)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
