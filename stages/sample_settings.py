"""What a user can set for `rlhf sample`. Torch-free, as stages.settings."""

from typing import Annotated, Literal

from pydantic import Field

from stages.blocks import Closed, Fraction, PositiveInt, RolloutSettings


class SampleSettings(Closed):
    """Answers for people to rank: `rlhf sample`, and each round's first step. No stage of `rlhf run`."""

    answers: Annotated[int, Field(ge=2, le=9)] = Field(4, description="Answers to each prompt, over all policies (InstructGPT: 4 to 9).")
    prompts: PositiveInt | None = Field(
        None, description="Prompts that are answered, drawn by the seed; fewer where there are fewer. null: all."
    )
    skip_prompts: Annotated[int, Field(ge=0)] = Field(
        0, description="Of the prompts in the order in which they are drawn, how many were taken before, by earlier rounds."
    )
    which: Literal["train", "held_out", "all"] = Field("train", description="Which of data.prompts are answered.")
    temperature: float | None = Field(None, gt=0, description="Sampling temperature. Default: as in PPO.")
    max_response_tokens: PositiveInt | None = Field(None, description="Longest response in tokens; default: as in PPO.")
    stop_token: str | None = Field(None, min_length=1, description="What ends a response, see ppo.stop_token; default: as in PPO.")
    near_duplicate: Fraction = Field(
        0.95,
        description="An answer is sampled again where it shares this much of its pairs of neighbouring words with another one to the same "
        "prompt, the share of both together; case and punctuation do not count. 1: only where it is the same.",
    )
    attempts: Annotated[int, Field(ge=0, le=20)] = Field(
        4, description="How often an answer is sampled again, at most; then it is left out."
    )
    batch_size: PositiveInt = Field(64, description="Responses that a process decodes at once.")
    rollout: RolloutSettings = Field(
        default_factory=lambda: RolloutSettings.model_validate({}),
        description="What samples them, as ppo.rollout: `engine: vllm` starts one server, which is given each policy's weights in turn.",
    )
