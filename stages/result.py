"""result.json of an artifact: what a stage says of itself when it is done. Torch-free."""

from typing import Literal

from pydantic import ConfigDict, Field

from stages.blocks import Closed

Precision = Literal["float32", "bfloat16"]


class ModelFacts(Closed):
    """What the next stage must find unchanged: the hand-off facts of a model artifact."""

    base_model: str = Field(description="Name or path of the model that this stage started from.")
    tokenizer_hash: str = Field(description="sha256 over vocabulary, merges and special tokens.")
    chat_template_hash: str
    vocab_size: int
    pad_token_id: int | None = Field(description="None: pretrain needs no padding, and leaves the tokenizer as it was.")
    eos_token_id: int
    form: Literal["full", "adapter"]
    architecture: str
    head: str | None = Field(None, description="Scalar head of a reward model: parameter name and shape.")
    score_bias: float | None = Field(
        None, description="Reward model: score = (logit - score_bias) / score_scale; demonstrations then have mean 0."
    )
    score_scale: float | None = Field(None, description="Reward model: see score_bias; 1 unless rm.scale_scores.")


class Interval(Closed):
    """Between which values a held-out figure lies, 95 %, and how much it was measured on."""

    low: float
    high: float
    n: int = Field(gt=0, description="Prompts, or records where there are no prompts: what was resampled.")


class StageWarning(Closed):
    """What the figures of a stage are known to mean; told once, when it is first found."""

    name: str = Field(max_length=40, description="Of the rule that found it: at most one of each.")
    message: str = Field(description="Found, what it means, what to try; as of `last_step`.")
    first_step: int | None = Field(default=None, description="Step (PPO: iteration) at which it was first found; None: of the whole stage.")
    last_step: int | None = Field(default=None, description="The last step at which it held: before the stage's last one, it ended.")


class StageResult(Closed):
    """What a stage says of itself when it is done."""

    # As in the manifest: a figure that is not a number must not lose a finished training.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    metrics: dict[str, float] = Field(description="Final figures; held-out ones begin with `eval/`.")
    intervals: dict[str, Interval] = Field(default_factory=dict, description="Of held-out figures, where they are known.")
    facts: ModelFacts | None = Field(None, description="Of the model that it leaves.")
    counts: dict[str, int] = Field(description="Records read, used, cut and dropped.")
    warnings: list[StageWarning] = Field(default_factory=list[StageWarning], description="Filled in at the end of the process.")
    notes: list[str] = Field(default_factory=list[str], description="What else was told; filled in likewise.")
    world_size: int
    device: str
    precision: Precision = Field(description="What was computed in; with `hardware.precision: auto` the machine decides.")
