"""What a user can set for `rlhf sample`. Torch-free, as stages.settings."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.blocks import Closed, Fraction, PositiveInt, RolloutSettings

CHOOSING = ("candidates", "candidate_prompts", "beta", "random_share", "reward_model")  # read only where something is chosen


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
    max_response_tokens: PositiveInt | None = Field(
        None, description="Longest response in tokens; default: as in PPO, and one less than tokens.max_response_tokens, for the end token."
    )
    stop_token: str | None = Field(None, min_length=1, description="What ends a response, see ppo.stop_token; default: as in PPO.")
    near_duplicate: Fraction = Field(
        0.95,
        description="An answer is sampled again where it shares this much of its pairs of neighbouring words with another one to the same "
        "prompt, the share of both together; case and punctuation do not count. 1: only where it is the same.",
    )
    attempts: Annotated[int, Field(ge=0, le=20)] = Field(
        4, description="How often an answer is sampled again, at most; then it is left out."
    )
    choose: Literal["random", "deltaucb"] = Field(
        "random",
        description="Which answers people are shown. random: those that were sampled. deltaucb: of `candidates` to each prompt those whose "
        "scores may lie furthest apart: the reward model's difference, and how unsure it is of it (DeltaUCB).",
    )
    candidates: Annotated[int, Field(ge=3, le=64)] = Field(
        8, description="deltaucb: answers that are sampled to each prompt, over all policies; `answers` of them are shown."
    )
    candidate_prompts: PositiveInt | None = Field(
        None,
        description="deltaucb: prompts that are answered; `prompts` of them are shown, those with the largest gap. Default: as many.",
    )
    beta: float = Field(
        1.0, ge=0, le=100, description="deltaucb: how much uncertainty counts, in standard deviations of the difference of two scores."
    )
    random_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="deltaucb: share of the prompts that are drawn and answered as with random, unknown to who ranks: by them `rlhf round "
        "--report` says whether choosing pays.",
    )
    reward_model: str | None = Field(
        None,
        min_length=1,
        description="deltaucb: ref of the reward model that chooses, such as rm@v2. Default: the one that the policy learnt from.",
    )
    batch_size: PositiveInt = Field(64, description="Responses that a process decodes at once.")
    rollout: RolloutSettings = Field(
        default_factory=lambda: RolloutSettings.model_validate({}),
        description="What samples them, as ppo.rollout: `engine: vllm` starts one server, which is given each policy's weights in turn.",
    )

    @model_validator(mode="after")
    def _there_is_something_to_choose_from(self) -> "SampleSettings":
        if self.choose == "random":
            return self
        if self.candidates <= self.answers:
            raise ValueError(f"found candidates = {self.candidates}, needed more than answers = {self.answers}, to choose from; raise it")
        if self.candidate_prompts is not None and (self.prompts is None or self.candidate_prompts < self.prompts):
            needed = f"at least prompts = {self.prompts or 'null'}, which says how many of them are shown"
            raise ValueError(f"found candidate_prompts = {self.candidate_prompts}, needed {needed}; set both")
        return self

    @property
    def pool(self) -> int | None:
        """How many prompts are answered; None: all."""
        return self.candidate_prompts if self.choose != "random" and self.candidate_prompts else self.prompts
