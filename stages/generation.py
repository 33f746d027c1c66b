"""Prompt ids -> response ids, by sampling or greedily: the one place that calls `generate`."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import GenerationConfig


@torch.no_grad()
def generate_responses(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_id: int,
    pad_token_id: int,
    temperature: float = 1.0,
    greedy: bool = False,
    batch_size: int = 64,
    autocast: AbstractContextManager[Any],
) -> list[list[int]]:
    """Answer each prompt; a response ends with its first stop token, or has `max_new_tokens` tokens without one.

    Sampling is from the full distribution softmax(logits / temperature): no top-k, no top-p, no repetition penalty,
    whatever the model's own generation config says. Draws from torch's global generator: seed it before.

    Args:
        model: causal language model in evaluation mode.
        prompts: token ids, one list per prompt; padded on the left here.
        max_new_tokens: longest response.
        stop_token_id: token that ends a response; it is part of it.
        pad_token_id: token of the padding; differs from the stop token.
        temperature: divisor of the logits; ignored when greedy.
        greedy: take the likeliest token instead of sampling.
        batch_size: prompts per call.
        autocast: context of the forward passes (re-enterable).

    Returns:
        Response ids per prompt, stop token included, padding excluded.
    """
    sampling: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=stop_token_id, pad_token_id=pad_token_id, bos_token_id=None, use_cache=True, **sampling
    )
    device = next(model.parameters()).device
    responses: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        width = max(len(prompt) for prompt in batch)
        input_ids_BP = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in batch], device=device)
        mask_BP = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch], device=device)
        with autocast, _neutral_generation(model):
            sequences_BT = model.generate(input_ids=input_ids_BP, attention_mask=mask_BP, generation_config=config)
        responses += [_cut_after_stop(row, stop_token_id) for row in sequences_BT[:, width:].tolist()]
    return responses


def _cut_after_stop(ids: list[int], stop_token_id: int) -> list[int]:
    return ids[: ids.index(stop_token_id) + 1] if stop_token_id in ids else ids


@contextmanager
def _neutral_generation(model: Any) -> Iterator[None]:
    """Set the model's own generation config aside.

    `generate` fills whatever a given config leaves open from the model's (a repetition penalty, suppressed tokens, min_p), and the
    log-probabilities would then not be those of the distribution that was sampled.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
