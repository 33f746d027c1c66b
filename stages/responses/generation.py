"""Prompts -> responses: the rollout engine.

Each (prompt, step) has a random number of its own, so a response does not depend on the rows beside it. How a family is decoded is tried
on a miniature of it (stages.models.miniature): over our cache (stages.responses.rows), or by transformers' `generate`.

Axes: N prompts, S response tokens, T tokens of a prompt and its response, V vocabulary.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from data.schema import first_line
from stages.internals import get_attention, silent_transformers
from stages.models.adapters import find_backbone, find_model
from stages.models.attention import PACKED
from stages.models.compiling import eagerly
from stages.models.logprobs import compute_logprobs
from stages.models.miniature import ConfigKey, make_miniature
from stages.models.precision import autocast, is_bfloat16
from stages.models.probe import attempt, refuse
from stages.process.context import StageContext, Told
from stages.responses.by_generate import answer_by_generate
from stages.responses.graphs import find_obstacle, tell_once
from stages.responses.narrow import narrowed
from stages.responses.rows import Rows
from stages.responses.sampling import Response

# Over our cache, with one additive mask of 4 axes for all layers or with a mask of two; by `generate`, or by it without a cache.
Decoding = Literal["additive", "masked", "generate", "recompute"]

_TRIED_PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [17, 18, 19],
    [20, 21, 22, 23, 24, 25, 26],
    [30],
    [35, 34, 33],
]  # two of one length
_TRIED_TOKENS = 6
_TOLERANCE = 1e-3  # nats
_GRAPH_TOKENS = 24  # so many that a captured step is replayed
# Nats, at most. On a GPU products of float32 may be those of TF32, where a position that stands still makes tenths; in bfloat16 logits of
# about 10 round to tenths, and a row that sees a column too many or too few makes 3 and more.
_GRAPH_TOLERANCE = {False: 2e-2, True: 1.0}


@torch.no_grad()
def generate_responses(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Collection[int],
    temperature: float = 1.0,
    greedy: bool = False,
    seed: int,
    max_rows: int,
    share: tuple[int, int] = (0, 1),
    stops: Callable[[Sequence[int]], bool] | None = None,
    told: Told | None = None,
) -> list[Response]:
    """Answer each prompt; a response ends with its first stop token, or has `max_new_tokens` tokens without one.

    Sampling is from the full distribution softmax(logits / temperature) over the tokenizer's tokens: no top-k, no top-p, no repetition
    penalty, whatever the model's generation config says. Torch's global generators are neither read nor changed; the model's mode is
    left as found.

    Args:
        model: decoder-only causal language model of transformers, or one wrapped by peft.
        prompts: token ids, one list per prompt, none empty.
        max_new_tokens: longest response, at least 1.
        stop_token_ids: tokens that end a response.
        temperature: divisor of the logits, > 0.
        greedy: take the likeliest token instead of sampling.
        seed: of the sampling noise; the same responses for any `max_rows`, up to the rounding of the logits.
        max_rows: prompts decoded at once, at least 1.
        share: (r, n): these prompts are every n-th of a longer list, from the r-th on, and get the answers that they would get there.
        stops: says of the ids of a response so far whether it ends here, stop token or not.
        told: hears how many responses are done.

    Returns:
        One response per prompt, in order.

    Raises:
        ValueError: a prompt is empty, or the model's logits are not numbers.
        StageError: the model's family cannot be decoded, see `find_decoding`.
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} has 0 tokens; needed: at least one to go on from")
    generator = torch.Generator().manual_seed(seed)
    place, stride = share
    uniforms_NS = torch.rand(len(prompts) * stride, max_new_tokens, dtype=torch.float64, generator=generator)[place::stride]
    decoding, graphed = find_decoding(model), can_graph(model)  # tried before the precision is entered
    was_training = model.training
    model.eval()
    try:
        # The precision is entered once, so that weights are cast once.
        with narrowed(model) as decoder, autocast(find_backbone(model), next(model.parameters()).device), eagerly(model):
            given = frozenset(stop_token_ids), stops, temperature, greedy, max_rows, told
            return _decode(decoding, decoder, prompts, uniforms_NS, *given, graphed=graphed and find_obstacle(decoder) is None)
    finally:
        model.train(was_training)


def _decode(
    decoding: Decoding, model: Any, prompts: Sequence[Sequence[int]], uniforms_NS: Tensor, *given: Any, graphed: bool = False
) -> list[Response]:
    if decoding in ("additive", "masked"):
        rows = Rows(model, prompts, uniforms_NS, *given, additive_mask=decoding == "additive", graphed=graphed)
        responses = rows.answer()
        if rows.obstacle is not None:
            tell_once(rows.obstacle)
        return responses
    return answer_by_generate(model, prompts, uniforms_NS, *given, use_cache=decoding == "generate")


def find_decoding(model: Any) -> Decoding:
    """Find how responses of a model are decoded: the first way whose log-probabilities are those of plain forwards, tried on a miniature.

    Raises:
        StageError: there is none; exit code 2.
    """
    config = find_model(model).config
    return decide_decoding(config, get_attention(config))


def decide_decoding(config: PretrainedConfig, attention: str) -> Decoding:
    """The same for a configuration, and the attention that its model computes by."""
    return _decide_decoding(ConfigKey(config), attention)


def can_graph(model: Any) -> bool:
    """Whether steps of a model's family are captured as CUDA graphs (stages.responses.graphs): on a GPU, tried on a miniature."""
    return next(model.parameters()).device.type == "cuda" and _find_obstacle(model) is None


def _find_obstacle(model: Any) -> str | None:
    if find_decoding(model) != "additive":
        return "it has no one mask for all layers"
    config = find_model(model).config
    return _try_graph(ConfigKey(config), get_attention(config), next(model.parameters()).device, is_bfloat16(find_backbone(model)))


def note_decoding(context: StageContext, model: Any) -> None:
    """Tell the user what `describe_decoding` finds."""
    if slower := describe_decoding(model):
        context.note(slower)


def describe_decoding(model: Any) -> str | None:
    """Say when responses are not decoded over our cache, and when a GPU launches each step's kernels one by one; else None."""
    decoding = find_decoding(model)
    if decoding in ("generate", "recompute"):
        how = "transformers' generate" + (" without a cache, each token by a forward over all before it" if decoding == "recompute" else "")
        return f"{type(find_model(model)).__name__} does not run over our key-value cache: responses are decoded by {how}, slower"
    if next(model.parameters()).device.type == "cuda" and (obstacle := find_obstacle(model) or _find_obstacle(model)):
        return f"responses are decoded without a CUDA graph, slower: {obstacle}"
    return None


@functools.cache
@silent_transformers()
@torch.no_grad()
def _decide_decoding(key: ConfigKey, attention: str) -> Decoding:
    if attention not in ("sdpa", "eager", PACKED):
        return "masked"  # a kernel that a miniature on the CPU cannot run
    model = attempt(key.config, "whose code cannot be tried", lambda: make_miniature(key.config, attention))
    for decoding in _list_decodings(key.config):
        try:
            if _agrees_with_forwards(model, decoding):
                return decoding
        except Exception:  # the family's code says in its own words that it cannot
            continue
    raise refuse(
        key.config, "whose responses cannot be decoded as plain forwards compute them", "a decoder that transformers' generate runs"
    )


def _list_decodings(config: Any) -> list[Decoding]:
    """List what is tried; layers with a window each build their own mask from one of two axes."""
    config = config.get_text_config()
    windowed = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return [*([] if windowed else ["additive"]), "masked", "generate", "recompute"]


def _agrees_with_forwards(model: Any, decoding: Decoding) -> bool:
    uniforms_NS = torch.rand(len(_TRIED_PROMPTS), _TRIED_TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    responses = _decode(decoding, model, _TRIED_PROMPTS, uniforms_NS, frozenset({0}), None, 1.0, False, 3, None)
    return _measure_gap(model, responses) <= _TOLERANCE


def _measure_gap(model: Any, responses: list[Response]) -> float:
    """Measure how far the log-probabilities of responses are from those of plain forwards, at most, in nats; NaN is infinite."""
    gaps = [0.0]
    for prompt, response in zip(_TRIED_PROMPTS, responses, strict=True):
        text_T = torch.tensor(prompt + response.ids, device=next(model.parameters()).device)
        logits_TV = model(input_ids=text_T[None], use_cache=False).logits[0]
        expected = compute_logprobs(logits_TV[len(prompt) - 1 : -1], text_T[len(prompt) :], 1.0).cpu()
        gaps.append(float((torch.tensor(response.logprobs) - expected).abs().max().nan_to_num(nan=torch.inf)))
    return max(gaps)


@functools.cache
@silent_transformers()
@torch.no_grad()
def _try_graph(key: ConfigKey, attention: str, device: torch.device, bfloat16: bool) -> str | None:
    """Decode by captured steps on a miniature, in the precision of the model; says what is in the way of it."""
    model = make_miniature(key.config, attention).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
        return _decode_by_graph(model, _GRAPH_TOLERANCE[bfloat16])


def _decode_by_graph(model: Any, tolerance: float) -> str | None:
    uniforms_NS = torch.rand(len(_TRIED_PROMPTS), _GRAPH_TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = Rows(model, _TRIED_PROMPTS, uniforms_NS, frozenset({0}), None, 1.0, False, 3, None, True, graphed=True)
    try:
        responses = rows.answer()
    except Exception as error:  # the family's code says in its own words that it cannot
        return f"{type(error).__name__}: {first_line(error):.200}"
    if rows.obstacle is None and _measure_gap(model, responses) > tolerance:
        return "captured steps would compute other log-probabilities"
    return rows.obstacle
