"""What a user can set for evaluation, and for who judges there. Torch-free, as stages.settings."""

from typing import Annotated

from pydantic import Field, model_validator

from stages.blocks import Closed, EndpointSettings, PositiveInt


class LLMJudgeSettings(EndpointSettings):
    """A language model that says which of two answers is better, asked in both orders; a tie where the two disagree."""

    instructions: str | None = Field(
        None,
        min_length=1,
        max_length=20_000,
        description="What makes an answer better; default: INSTRUCTIONS in stages/responses/llm_judge.py. How to reply is added to it.",
    )
    samples: PositiveInt = Field(1, description="Sampled answers to each prompt that are compared, the first ones.")


class JudgeSettings(Closed):
    """A judge of one stage, in place of the recipe's `judge`: a language model, or a second reward model."""

    llm: LLMJudgeSettings | None = Field(None, description="A language model behind an OpenAI-compatible address.")
    reward_model: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="A reward model that PPO did not learn from: a directory, a hub id, or an artifact such as rm@v2. It has a tokenizer "
        "and a chat template of its own, or is an encoder, which reads prompt and answer as a pair.",
    )
    revision: str | None = Field(None, description="Revision of a reward model from the hub; pin a commit.")

    @model_validator(mode="after")
    def _is_one(self) -> "JudgeSettings":
        if (self.llm is None) == (self.reward_model is None):
            found = "neither" if self.llm is None else "both"
            raise ValueError(f"found {found} of llm and reward_model, needed one of them; give one, or leave this judge out")
        return self


class EvaluateSettings(Closed):
    """Stage 4, evaluation: what base, SFT and PPO say to fixed held-out prompts, and what the reward model sees of held-out comparisons."""

    prompts: PositiveInt = Field(128, description="Held-out prompts that are answered, the first ones; fewer where there are fewer.")
    samples: PositiveInt = Field(
        16, description="Sampled answers of the SFT model to each prompt: the pool for best of n, and for the frontier of what is possible."
    )
    policy_samples: PositiveInt = Field(
        4, description="Sampled answers of every other model to each prompt, and as many of the SFT model's that they are compared with."
    )
    max_response_tokens: PositiveInt | None = Field(None, description="Longest response in tokens; default: as in PPO.")
    temperature: float | None = Field(
        None, gt=0, description="Sampling temperature; logits are divided by it for all log-probabilities. Default: as in PPO."
    )
    stop_token: str | None = Field(None, min_length=1, description="What ends a response, see ppo.stop_token; default: as in PPO.")
    comparisons: PositiveInt = Field(500, description="Held-out comparisons that the reward model ranks, at most.")
    probe_prompts: Annotated[int, Field(ge=0)] = Field(
        100, description="Held-out comparisons whose best answer the probes edit, at most. 0: no probes."
    )
    probes: str | None = Field(
        None,
        description="`module:function` that edits an answer: (prompt, answer) -> {name: {text, description}} or {name: text}, one flaw in "
        "each, beside the probes that there are for every task. The module is installed, on PYTHONPATH or beside the recipe.",
    )
    batch_size: PositiveInt = Field(64, description="Responses that a process decodes at once.")
    judge: JudgeSettings | None = Field(
        None, description="Who judges in place of the recipe's `judge`: a language model (`llm`), or a second reward model."
    )
