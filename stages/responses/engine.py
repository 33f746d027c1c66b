"""Prompts -> sampled responses, by an engine -> Rollout.

TorchEngine                      the policy's own forward, in the stage's processes
stages.responses.vllm_client     a vLLM server
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from stages.process.context import Told
from stages.responses.generation import generate_responses
from stages.responses.rollout import Rollout, pack_rollout
from stages.responses.sampling import Response
from stages.responses.stop import StopText, find_stop


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled: from the whole distribution, at a temperature."""

    max_new_tokens: int
    temperature: float
    pad_token_id: int
    eos_token_id: int
    stop_token_id: int  # a response is finished when it ends with this one; the end token by default
    stop_text: StopText | None = None  # in its place: text of several tokens

    def is_stopped(self, response: Sequence[int]) -> bool:
        """Whether a response ends with the stop token, or holds the stop text."""
        return self.stop_text.ends(response) if self.stop_text else response[-1] == self.stop_token_id


def make_sampling(stage: str, tokenizer: Any, stop_token: str | None, max_new_tokens: int, temperature: float) -> Sampling:
    """Say how responses are sampled that end with a stop token, or with text of several tokens in its place; None: the end token.

    Raises:
        StageError: see `find_stop`.
    """
    stop_token_id, stop_text = find_stop(stage, stop_token, tokenizer)
    return Sampling(max_new_tokens, temperature, tokenizer.pad_token_id, tokenizer.eos_token_id, stop_token_id, stop_text)


@dataclass(frozen=True)
class Draw:
    """One drawing of responses: with which noise, which of them here, and who hears of it."""

    seed: int  # of the sampling noise
    greedy: bool = False  # take the likeliest tokens instead; for evaluation only
    share: tuple[int, int] = (0, 1)  # (rank, number of ranks), see `generate_responses`
    told: Told | None = None  # hears how many responses are done


def sample_responses(policy: Any, prompts: Sequence[list[int]], sampling: Sampling, draw: Draw, *, batch_size: int) -> list[Response]:
    """Answer each prompt by a policy's own forward, so many at once."""
    return generate_responses(
        policy,
        prompts,
        max_new_tokens=sampling.max_new_tokens,
        stop_token_ids={sampling.stop_token_id, sampling.eos_token_id},
        temperature=sampling.temperature,
        greedy=draw.greedy,
        seed=draw.seed,
        max_rows=batch_size,
        share=draw.share,
        stops=sampling.stop_text and sampling.stop_text.ends,
        told=draw.told,
    )


class PolicyHolder(Protocol):
    """What an engine uses of a model in training; `stages.ppo.learner.Learner` is one."""

    module: Any  # its `policy` is the language model

    def whole_weights(self, *, frozen: bool = True) -> AbstractContextManager[Any]:
        """Inside, every rank holds all weights, and `module` can be used alone; without `frozen`, those that learn only."""
        ...


class RolloutEngine(Protocol):
    """What samples responses."""

    def answer(self, actor: PolicyHolder, prompts: list[list[int]], sampling: Sampling, draw: Draw) -> list[Response]:
        """Answer each prompt by the actor's policy as it is now; all ranks must call it, each with its own prompts.

        A response ends with the stop token or the end token.
        """
        ...


class TorchEngine:
    """The policy's own forward, see `stages.responses.generation`: the same numbers as in training, up to the rounding of another batch."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size  # responses decoded at once

    def answer(self, actor: PolicyHolder, prompts: list[list[int]], sampling: Sampling, draw: Draw) -> list[Response]:
        with actor.whole_weights():
            return sample_responses(actor.module.policy, prompts, sampling, draw, batch_size=self.batch_size)


def roll_out(
    engine: RolloutEngine,
    actor: PolicyHolder,
    prompts: list[list[int]],
    sampling: Sampling,
    *,
    seed: int,
    greedy: bool = False,
    share: tuple[int, int] = (0, 1),
    told: Told | None = None,
) -> Rollout:
    """Sample one response per prompt; it ends with the stop token or the end token, and is finished only with the stop token.

    For the arguments see `RolloutEngine` and `Draw`.
    """
    answered = engine.answer(actor, prompts, sampling, Draw(seed, greedy, share, told))
    responses = [response.ids for response in answered]
    finished = [sampling.is_stopped(ids) for ids in responses]
    device: torch.device = next(actor.module.parameters()).device
    logprobs = [response.logprobs for response in answered]
    return pack_rollout(prompts, responses, finished, sampling.pad_token_id, device, logprobs)
