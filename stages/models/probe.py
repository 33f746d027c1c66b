"""What a family's code can do, tried on a miniature of the model: packed rows, its attention, its own way from states to logits.

configuration -> make_miniature -> a few forwards of a few tokens -> Ways, or a refusal in one line

Nothing here knows a family by its name. Axes: T tokens of a document, V vocabulary; N tokens of a packed row.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from stages.internals import Conv1D, get_attention, silent_transformers
from stages.models.attention import PACKED
from stages.models.forward import compute_hidden_states
from stages.models.logits import compute_logits
from stages.models.miniature import ConfigKey, make_miniature
from stages.models.packing import PackedRow, pack
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE

_TOLERANCE = 1e-3  # of the largest number compared: rounding through many layers makes 1e-4, a wrong mask or a missing cap 1e-2
_DOCUMENTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [17, 18, 19], [20, 21, 22, 23, 24, 25, 26], [27, 28, 29, 30, 31], [3, 2, 1]]
_PARENTS = [-1, 0, 0, -1, 3]


@dataclass(frozen=True)
class Ways:
    """How a family computes.

    Args:
        attention: The implementation that `hardware.attention: auto` takes where rows are not packed.
        packed: Whether our attention over packed rows fits.
        own_head: Whether logits are more than the output embeddings make of the last hidden states (a cap, a scale).
        bypassed: Names of linear layers whose weight is read, if at all, without a call of the layer: an adapter there would learn nothing.
    """

    attention: str
    packed: bool
    own_head: bool
    bypassed: frozenset[str]


def ways_of(model: Any) -> Ways:
    """Get the ways of a model, found at the first call and kept on it; `model` is a causal language model or a classifier."""
    if not hasattr(model, "ways"):
        model.ways = find_ways(model.config)
    return model.ways


def enable_packing(model: Any) -> bool:
    """Switch a model's attention to ours, if it fits its family; says whether it does."""
    if ways_of(model).packed and get_attention(model.config) != PACKED:
        model.set_attn_implementation(PACKED)
    return ways_of(model).packed


def find_ways(config: PretrainedConfig) -> Ways:
    """Try what the family of a configuration can do.

    Raises:
        StageError: it is no decoder, or computes in none of our ways; exit code 2.
    """
    refuse_encoders(config)
    return attempt(config, "whose code cannot be tried", lambda: _find_ways(ConfigKey(config)))


def refuse_encoders(config: PretrainedConfig) -> None:
    """Refuse what transformers knows no causal language model of, and models with an encoder.

    Raises:
        StageError: exit code 2.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise refuse(config, "which has an encoder beside its decoder", "a decoder alone")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refuse(config, "which this version of transformers has no causal language model of", "a decoder")


@functools.cache
@silent_transformers()
def _find_ways(key: ConfigKey) -> Ways:
    config = key.config
    model = _make(config, None)
    with torch.no_grad():
        plain = attempt(config, "whose forward cannot be run", lambda: _list_logits(model))
        if get_attention(model.config) != "eager":
            # Kernels that leave out what the family's own code computes, such as a cap on attention's logits.
            eager_model = _make(config, "eager")
            eager_plain = attempt(config, "whose eager attention cannot be run", lambda: _list_logits(eager_model))
            if _differs(eager_plain, plain):
                model, plain = eager_model, eager_plain
        _require_causality(model, plain)
        own_head = _find_head(model, plain)
        row = pack(_DOCUMENTS, _PARENTS)
        expected_NH = torch.cat([_states_alone(model, index) for index in range(len(_DOCUMENTS))])
        padded_NH = attempt(config, "whose padded batches cannot be computed", lambda: _states(model, row))
        if _differs([expected_NH], [padded_NH]):
            raise refuse(
                config,
                "which computes something else for a document beside a longer one in a padded batch",
                "a decoder that padding leaves alone",
            )
        bypassed = _find_bypassed(model)
    _require_gradients(model, row, expected_NH)
    attention = get_attention(model.config)
    return Ways(attention, _can_pack(model, row, expected_NH), own_head, bypassed)


def _make(config: PretrainedConfig, attention: str | None) -> Any:
    return attempt(config, "whose code cannot be tried", lambda: make_miniature(config, attention))


@torch.no_grad()
def _can_pack(model: Any, row: PackedRow, expected_NH: Tensor) -> bool:
    """Whether documents come out of a packed row as they do alone; the model is left with our attention."""
    try:
        model.set_attn_implementation(PACKED)
        return get_attention(model.config) == PACKED and not _differs([expected_NH], [_states(model, row)])
    except Exception:  # the family's code says in its own words that it cannot
        return False


def attempt(config: PretrainedConfig, what: str, compute: Callable[[], Any]) -> Any:
    """Compute; whatever a family's code raises becomes a refusal.

    Raises:
        StageError: exit code 2.
    """
    try:
        return compute()
    except StageError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise refuse(config, f"{what} here ({type(error).__name__}: {said})", "a decoder that transformers runs") from error


def refuse(config: PretrainedConfig, found: str, needed: str) -> StageError:
    """Say in one line why a base model cannot be used."""
    return StageError(
        f"base_model: found {config.model_type} ({type(config).__name__}), {found}; needed: {needed}; take another base model",
        EXIT_USAGE,
    )


def _differs(expected: list[Tensor], found: list[Tensor]) -> bool:
    if len(expected) != len(found):
        return True
    error = max(float((a.float() - b.float()).abs().max()) for a, b in zip(expected, found, strict=True))
    return not error <= _TOLERANCE * max(float(tensor.abs().max()) for tensor in expected)


def _ids(model: Any, document: list[int]) -> Tensor:
    return torch.tensor([document], device=next(model.parameters()).device)


def _list_logits(model: Any) -> list[Tensor]:
    return [_logits_alone(model, document) for document in _DOCUMENTS]


def _logits_alone(model: Any, document: list[int]) -> Tensor:
    return model(input_ids=_ids(model, document), use_cache=False).logits[0]


def _states_alone(model: Any, index: int) -> Tensor:
    before = _DOCUMENTS[_PARENTS[index]] if _PARENTS[index] >= 0 else []
    return model.base_model(input_ids=_ids(model, before + _DOCUMENTS[index]), use_cache=False).last_hidden_state[0, len(before) :]


def _states(model: Any, row: PackedRow) -> Tensor:
    return compute_hidden_states(model.base_model, row)[: int(row.lengths_D.sum())]


def _require_causality(model: Any, plain: list[Tensor]) -> None:
    """See that no output depends on a later token."""
    for document, logits_TV in zip(_DOCUMENTS, plain, strict=True):
        changed_TV = _logits_alone(model, [*document[:-1], document[-1] + 1])
        if len(document) > 1 and _differs([logits_TV[:-1]], [changed_TV[:-1]]):
            raise refuse(model.config, "whose outputs depend on later tokens", "a decoder, which sees only what is before")


def _find_head(model: Any, plain: list[Tensor]) -> bool:
    """Whether logits come of the model's own code above its backbone; else the output embeddings alone make them."""
    hidden = [model.base_model(input_ids=_ids(model, document), use_cache=False).last_hidden_state[0] for document in _DOCUMENTS]
    for own_head in (False, True):
        try:
            if not _differs(plain, [compute_logits(model, hidden_TH, own_head=own_head) for hidden_TH in hidden]):
                return own_head
        except Exception:  # no output embeddings, or code that asks the backbone for more than states
            continue
    raise refuse(
        model.config, "whose logits are not made of the last hidden states alone", "a decoder with an output layer above its backbone"
    )


def _find_bypassed(model: Any) -> frozenset[str]:
    """Name the linear layers of which none is called in a forward, in training or in evaluation."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    names = frozenset(map(_last_name, layers))
    return (names - _list_called(model.train(), layers)) | (names - _list_called(model.eval(), layers))


def _list_called(model: Any, layers: Mapping[str, torch.nn.Module]) -> set[str]:
    called: set[str] = set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(_last_name(name))) for name, layer in layers.items()]
    _list_logits(model)
    for hook in hooks:
        hook.remove()
    return called


def _last_name(path: str) -> str:
    return path.rpartition(".")[2]


def _require_gradients(model: Any, row: PackedRow, expected_NH: Tensor) -> None:
    """See that a backward pass runs, and that training mode computes what evaluation mode does."""

    def compute() -> Tensor:
        model.train()
        states_NH = _states(model, row)
        states_NH.square().sum().backward()
        return states_NH.detach()

    found_NH = attempt(model.config, "whose backward pass cannot be run", compute)
    model.eval()
    model.zero_grad()
    if _differs([expected_NH], [found_NH]):
        raise refuse(model.config, "which computes something else in training than in evaluation", "a forward without anything random")
