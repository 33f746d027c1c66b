"""Prompts -> sampled responses, by an engine -> Rollout, and the log-probabilities and values of its tokens.

    TorchEngine        the policy's own forward, in the stage's processes
    stages.ppo.vllm    a vLLM server

Axes: B responses, R response tokens (padded on the right), K all real response tokens.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.generation import Response, generate_responses
from stages.ppo.experience import Rollout, pack_rollout
from stages.ppo.learner import Learner

Autocast = AbstractContextManager[Any]  # the precision of a forward; entered anew for each


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled: from the whole distribution, at a temperature."""

    max_new_tokens: int
    temperature: float
    pad_token_id: int
    eos_token_id: int
    stop_token_id: int  # a response is finished when it ends with this one; the end token by default


class RolloutEngine(Protocol):
    """What samples responses."""

    def answer(
        self, actor: Learner, prompts: list[list[int]], sampling: Sampling, *, seed: int, greedy: bool, share: tuple[int, int]
    ) -> list[Response]:
        """Answer each prompt by the actor's policy as it is now; all ranks must call it, each with its own prompts.

        Args:
            actor: holds the policy.
            prompts: prompt ids.
            sampling: how to sample; a response ends with the stop token or the end token.
            seed: of the sampling noise.
            greedy: take the likeliest tokens instead; for evaluation only.
            share: (rank, number of ranks); see `generate_responses`.
        """
        ...


class TorchEngine:
    """The policy's own forward, see `stages.generation`: the same numbers as in training, up to the rounding of another batch."""

    def __init__(self, batch_size: int, autocast: Autocast) -> None:
        self.batch_size = batch_size  # responses decoded at once
        self.autocast = autocast

    def answer(
        self, actor: Learner, prompts: list[list[int]], sampling: Sampling, *, seed: int, greedy: bool, share: tuple[int, int]
    ) -> list[Response]:
        with actor.whole_weights():
            return generate_responses(
                actor.module.policy,
                prompts,
                max_new_tokens=sampling.max_new_tokens,
                stop_token_ids={sampling.stop_token_id, sampling.eos_token_id},
                temperature=sampling.temperature,
                greedy=greedy,
                seed=seed,
                max_rows=self.batch_size,
                autocast=self.autocast,
                share=share,
            )


def roll_out(
    engine: RolloutEngine,
    actor: Learner,
    prompts: list[list[int]],
    sampling: Sampling,
    *,
    seed: int,
    greedy: bool = False,
    share: tuple[int, int] = (0, 1),
) -> tuple[Rollout, Tensor]:
    """Sample one response per prompt; it ends with the stop token or the end token, and is finished only with the stop token.

    Returns:
        (rollout, engine_logprobs_BR: log-probability of each token as the engine computed it, float32, 0 outside the mask). For the
        arguments see `RolloutEngine`.
    """
    answered = engine.answer(actor, prompts, sampling, seed=seed, greedy=greedy, share=share)
    responses = [response.ids for response in answered]
    finished = [ids[-1] == sampling.stop_token_id for ids in responses]
    device: torch.device = next(actor.module.parameters()).device
    rollout = pack_rollout(prompts, responses, finished, sampling.pad_token_id, device)
    engine_logprobs_K = torch.tensor([logprob for response in answered for logprob in response.logprobs], device=device)
    return rollout, rollout.unpack(engine_logprobs_K)


@torch.no_grad()
def evaluate_tokens(
    actor: Any, critic: Any, rollout: Rollout, temperature: float, micro_batches: list[Tensor], autocast: Autocast
) -> tuple[Tensor, Tensor, Tensor]:
    """Recompute what the policy and the critic say of each sampled token, by the forward that the update uses.

    Returns:
        (logprobs_BR, values_BR, entropies_BR) in float32, 0 outside the mask.
    """
    figures_BR = [torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_mask_BR.device) for _ in range(3)]
    for rows_b in micro_batches:
        part = rollout.select(rows_b)
        row, predictors_K = part.pack()
        with autocast:
            logprobs_K, entropies_K = actor(row, predictors_K, temperature, True)
            values_K = critic(row, predictors_K)
        for figure_BR, figure_K in zip(figures_BR, (logprobs_K, values_K, entropies_K), strict=True):
            figure_BR[rows_b, : part.response_mask_BR.shape[1]] = part.unpack(figure_K)
    return figures_BR[0], figures_BR[1], figures_BR[2]


@torch.no_grad()
def compute_ref_logprobs(reference: Any, rollout: Rollout, temperature: float, micro_batches: list[Tensor], autocast: Autocast) -> Tensor:
    """Compute ref_logprobs_BR: the log-probability of each sampled token under the reference (an Actor), 0 outside the mask."""
    ref_logprobs_BR = torch.zeros(rollout.response_mask_BR.shape, device=rollout.response_mask_BR.device)
    for rows_b in micro_batches:
        part = rollout.select(rows_b)
        row, predictors_K = part.pack()
        with autocast:
            ref_logprobs_K, _ = reference(row, predictors_K, temperature)
        ref_logprobs_BR[rows_b, : part.response_mask_BR.shape[1]] = part.unpack(ref_logprobs_K)
    return ref_logprobs_BR
