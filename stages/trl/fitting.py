"""Which parts of TRL's SFT fit a model's family, tried on a miniature: its fused head, and its packing.

The head, which never holds all logits, knows caps and scales by the names of a few families' settings. Packed documents are told apart by
their positions, which recurrent layers do not look at.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PretrainedConfig
from trl.trainer.utils import add_fused_lm_head

from stages.models.logprobs import compute_logprobs
from stages.models.miniature import ConfigKey, make_miniature

_TOLERANCE = 1e-3  # nats


def fused_head_fits(config: PretrainedConfig) -> bool:
    """Whether TRL's head makes of a model's states the log-probabilities that the model's own logits have."""
    return _fused_head_fits(ConfigKey(config))


def packing_fits(config: PretrainedConfig) -> bool:
    """Whether documents in one row, told apart by their positions alone, come out as they do by themselves."""
    return _packing_fits(ConfigKey(config))


@functools.cache
@torch.no_grad()
def _fused_head_fits(key: ConfigKey) -> bool:
    model = make_miniature(key.config)
    tokens_1T = torch.arange(1, 25)[None]
    expected_K = compute_logprobs(model(input_ids=tokens_1T, use_cache=False).logits[0, :-1], tokens_1T[0, 1:], 1.0)

    def find() -> Tensor:
        add_fused_lm_head(model)
        return model(input_ids=tokens_1T, labels=tokens_1T, fused_lm_head=True).log_probs[0]

    return _agrees(expected_K, find)


@functools.cache
@torch.no_grad()
def _packing_fits(key: ConfigKey) -> bool:
    model = make_miniature(key.config)
    tokens_1T, positions_1T = torch.arange(1, 25)[None], torch.cat([torch.arange(10), torch.arange(14)])[None]
    documents = (tokens_1T[:, :10], tokens_1T[:, 10:])
    expected_TV = torch.cat([model(input_ids=document, use_cache=False).logits[0] for document in documents])
    return _agrees(expected_TV, lambda: model(input_ids=tokens_1T, position_ids=positions_1T, use_cache=False).logits[0])


def _agrees(expected: Tensor, find: Callable[[], Tensor]) -> bool:
    try:
        return float((find() - expected).abs().max()) <= _TOLERANCE
    except Exception:  # a family that does not fit says so in its own words
        return False
