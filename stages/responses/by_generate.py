"""Prompts -> responses by transformers' `generate`, with our own sampling: for recurrent and hybrid layers, whose caches are their own.

Prompts of one length are decoded together, so that nothing is padded: a recurrent state would take padding in.
Axes: N prompts, S response tokens, B rows, T tokens so far, V vocabulary.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from stages.models.logprobs import get_num_tokens
from stages.process.context import Told
from stages.responses.sampling import Response, sample_tokens


def answer_by_generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms_NS: Tensor,
    stop_token_ids: frozenset[int],
    stops: Callable[[Sequence[int]], bool] | None,
    temperature: float,
    greedy: bool,
    max_rows: int,
    told: Told | None = None,
    *,
    use_cache: bool,
) -> list[Response]:
    """Answer prompts; for the arguments see `stages.responses.generation.generate_responses`.

    Raises:
        ValueError: the model's logits are not numbers.
    """

    def has_ended(ids: Sequence[int]) -> bool:
        return ids[-1] in stop_token_ids or (stops is not None and stops(ids))

    device: torch.device = next(model.parameters()).device
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    responses: dict[int, Response] = {}
    for _, found in itertools.groupby(by_length, key=lambda index: len(prompts[index])):
        alike = list(found)
        for group in (alike[start : start + max_rows] for start in range(0, len(alike), max_rows)):
            sampler = _Sampler(uniforms_NS[group].to(device), temperature, greedy, get_num_tokens(model))
            ids_BT = torch.tensor([list(prompts[index]) for index in group], device=device)
            config = GenerationConfig(
                do_sample=False,
                max_new_tokens=uniforms_NS.shape[1],
                eos_token_id=sorted(stop_token_ids),
                pad_token_id=min(stop_token_ids),
                use_cache=use_cache,
            )
            model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                generation_config=config,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([_Ended(sampler, stops)] if stops else []),
            )
            responses |= dict(zip(group, sampler.read(has_ended), strict=True))
            if told:
                told(len(responses), len(prompts))
    return [responses[index] for index in range(len(prompts))]


class _Sampler(LogitsProcessor):
    """Samples from a row's logits by our uniform numbers, and leaves `generate` no other token to take."""

    def __init__(self, uniforms_BS: Tensor, temperature: float, greedy: bool, num_tokens: int | None) -> None:
        self.uniforms_BS = uniforms_BS
        self.temperature = temperature
        self.greedy = greedy
        self.num_tokens = num_tokens
        self.tokens: list[Tensor] = []
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.tokens)
        uniforms_B1 = self.uniforms_BS[:, step : step + 1]
        tokens_B1, logprobs_B1 = sample_tokens(scores[:, : self.num_tokens], uniforms_B1, self.temperature, greedy=self.greedy)
        self.tokens.append(tokens_B1)
        self.logprobs.append(logprobs_B1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens_B1, 0.0)

    def list_tokens(self) -> list[list[int]]:
        """List what each row sampled, also behind its end."""
        return torch.cat(self.tokens, dim=1).tolist()

    def read(self, has_ended: Callable[[Sequence[int]], bool]) -> list[Response]:
        """Read what was sampled, each row up to its end."""
        responses: list[Response] = []
        for tokens, logprobs in zip(self.list_tokens(), torch.cat(self.logprobs, dim=1).tolist(), strict=True):
            length = next((end for end in range(1, len(tokens)) if has_ended(tokens[:end])), len(tokens))
            if any(math.isnan(logprob) for logprob in logprobs[:length]):
                raise ValueError("the logits after a prompt are NaN; needed: finite logits; train with a lower learning rate")
            responses.append(Response(tokens[:length], logprobs[:length]))
        return responses


class _Ended(StoppingCriteria):
    """Which rows end at what was sampled last, stop token or not."""

    def __init__(self, sampler: _Sampler, stops: Callable[[Sequence[int]], bool]) -> None:
        self.sampler = sampler
        self.stops = stops

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.tensor([self.stops(tokens) for tokens in self.sampler.list_tokens()], device=input_ids.device)
