"""A model's forward over a packed row: by our attention where it fits the model, as a padded batch where it does not.

token ids -> PackedRow -> compute_hidden_states -> one hidden state per token

Axes: N tokens of the row, D documents, K tokens that are read; B rows of a padded batch, W its width.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from stages.internals import get_attention
from stages.models.adapters import find_model
from stages.models.attention import PACKED
from stages.models.packing import PackedRow
from stages.process.context import StageContext


def is_packed(model: Any) -> bool:
    """Whether a model's attention was switched to ours."""
    return get_attention(model.config) == PACKED


def note_padding(context: StageContext, model: Any) -> None:
    """Tell the user when a model's attention could not be switched to packed rows as `hardware.attention: auto` would."""
    if context.spec.hardware.attention == "auto" and not is_packed(model):
        context.note(f"the attention of {type(find_model(model)).__name__} cannot isolate documents in one row: batches are padded")


def compute_hidden_states(backbone: Any, row: PackedRow, read_K: Tensor | None = None) -> Tensor:
    """Compute the last hidden state of each token of the row, [N, hidden size], or only those at `read_K`, [K, hidden size]."""
    inputs, places_N = make_inputs(backbone, row)
    return backbone(**inputs).last_hidden_state.flatten(0, 1)[places_N if read_K is None else places_N[read_K]]


def make_inputs(model: Any, row: PackedRow) -> tuple[dict[str, Any], Tensor]:
    """Give a model (or its backbone) the arguments that compute a row, and say where each token's output will lie.

    A model whose attention was not switched gets the same documents as a padded batch, one row for each that no other continues.

    Returns:
        (arguments of the forward, place of each of the N tokens in an output of which batch and position are flattened into one axis).
    """
    if not is_packed(model):
        inputs, places_N = _pad(row)
        if not takes_positions(type(model)):
            del inputs["position_ids"]
        return inputs, places_N
    inputs = {
        "input_ids": row.ids_N[None],
        "position_ids": row.positions_N[None],
        # A 4-D mask is taken as it is: transformers then builds none of its own, which would be N x N.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=row.ids_N.device),
        "use_cache": False,
        "packed_row": row,
    }
    return inputs, torch.arange(len(row.ids_N), device=row.ids_N.device)


def _pad(row: PackedRow) -> tuple[dict[str, Any], Tensor]:
    """Lay the documents of a row out as a padded batch; see `make_inputs`.

    Two documents a0 a1 and b0 b1 b2: the batch [[a0 a1 0] [b0 b1 b2]], and the row's tokens lie at [0 1 3 4 5] of its 6 places. If the
    second continues the first: the batch [[a0 a1 b0 b1 b2]], and they lie at [0 1 2 3 4].
    """
    starts: list[int]
    lengths: list[int]
    parents: list[int]
    starts, lengths, parents = row.layout_3D.tolist()
    continued = set(parents)
    sources: list[list[int]] = []  # the tokens of each padded row, by their index in the packed one
    for document, parent in enumerate(parents):
        if document not in continued:
            members = [parent, document] if parent >= 0 else [document]
            sources.append([index for member in members for index in range(starts[member], starts[member] + lengths[member])])
    width = max(map(len, sources))
    device = row.ids_N.device
    source_BW = torch.tensor([source + [0] * (width - len(source)) for source in sources], device=device)
    mask_BW = torch.tensor([[True] * len(source) + [False] * (width - len(source)) for source in sources], device=device)
    # A continued document stands in several rows; any of them serves, since nothing in it depends on what follows.
    places_N = torch.zeros_like(row.ids_N)
    places_N[source_BW[mask_BW]] = mask_BW.flatten().nonzero()[:, 0]
    inputs = {
        "input_ids": torch.where(mask_BW, row.ids_N[source_BW], 0),
        "attention_mask": mask_BW.long(),
        "position_ids": torch.where(mask_BW, row.positions_N[source_BW], 0),
        "use_cache": False,
    }
    return inputs, places_N


@functools.cache
def takes_positions(model_class: type) -> bool:
    """Whether a model's forward can be told the position of each token; others count them, or need none."""
    return "position_ids" in inspect.signature(model_class.forward).parameters
