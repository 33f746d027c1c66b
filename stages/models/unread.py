"""The last layer's MLP on only those tokens of a row whose last hidden state is read (`PackedRow.reading`).

At the others the layer's output means nothing, and nothing depends on it: the last layer's keys and values are computed before. PPO reads
the states before response tokens, a reward model one of each answer.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stages.internals import list_layers
from stages.models.forward import PROBE_TOLERANCE, compute_hidden_states
from stages.models.packing import PackedRow, pack


class _Hooks:
    """Of one model: the attention notes the row, the MLP's input is cut to the tokens that are read, its output spread again."""

    def __init__(self) -> None:
        self._row: PackedRow | None = None

    def note_row(self, attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the attention: a checkpointed layer's second run calls it again, but no hook of the layer itself."""
        row = kwargs.get("packed_row")
        self._row = None if row is None or row.read_R is None else row

    def select(self, mlp: nn.Module, args: Any) -> Any:
        """Before the MLP."""
        return args if self._row is None else (args[0].index_select(1, self._row.read_R), *args[1:])

    def spread(self, mlp: nn.Module, args: Any, output: Any) -> Any:
        """After the MLP: what it gave lies where it belongs again, between zeros."""
        if self._row is None:
            return output
        row, self._row = self._row, None
        return output.new_zeros(1, len(row.ids_N), output.shape[-1]).index_copy(1, row.read_R, output)


@torch.no_grad()
def skip_unread(model: Any) -> bool:
    """Put the hooks on a model with packed rows, if its tokens then come out the same; tried, not assumed.

    Returns:
        Whether it could be done; a model whose last layer has no attention and MLP by such names runs on all tokens.
    """
    layers = list_layers(model.base_model)
    parts = dict(layers[-1].named_children()) if layers else {}
    attention, mlp = next((part for name, part in parts.items() if "attn" in name or "attention" in name), None), parts.get("mlp")
    if attention is None or mlp is None:
        return False
    was_training = model.training
    model.eval()
    row = pack([[1, 2, 3], [4, 5], [6], [7, 8, 9, 1, 2]], device=next(model.parameters()).device)
    expected_NH = compute_hidden_states(model.base_model, row)
    hooks = _Hooks()
    handles = [
        attention.register_forward_pre_hook(hooks.note_row, with_kwargs=True),
        mlp.register_forward_pre_hook(hooks.select),
        mlp.register_forward_hook(hooks.spread),
    ]
    try:
        skipping = replace(row, read_R=row.lasts_D)  # not `reading`, which here would fill up to all
        found_DH = compute_hidden_states(model.base_model, skipping)[row.lasts_D]
        again_NH = compute_hidden_states(model.base_model, row)  # an MLP before the attention would go by the last forward's row
        error = torch.maximum((found_DH - expected_NH[row.lasts_D]).abs().max(), (again_NH - expected_NH).abs().max())
        works = bool(error <= PROBE_TOLERANCE * expected_NH.abs().max())
    except Exception:  # whatever it is that an MLP of another kind says of fewer tokens
        works = False
    model.train(was_training)
    if not works:
        for handle in handles:
            handle.remove()
    return works
