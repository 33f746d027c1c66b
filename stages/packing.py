"""Documents of unequal length in one row, without padding, each blind to the others; a document may continue another one.

token ids -> PackedRow -> compute_hidden_states -> one hidden state per token

A rollout's prompt and response are one document. A comparison is a prompt and K answers that continue it: the prompt is computed once,
and every answer attends to the prompt's keys and values (gradient included) and to its own. Both equal separate forwards to rounding.

Axes: N tokens of the row (its filling included), D documents, A attention heads, E head size; in a group of G
documents of similar length Q is the longest of them and K the longest with what it continues; W is the width of a padded batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "packed"  # the name of our attention among transformers' implementations
_PROBE_TOLERANCE = 2e-3  # of the largest hidden state: room for TF32 and bfloat16 weights, none for a wrong mask
_GROUP_SIZE = 16  # documents attended to in one call, at most
_GROUP_GROWTH = 2.0  # and the longest over the shortest of them
# bfloat16 products on a CPU run by kernels that are generated for each shape and kept: shapes that recur save a third of a step.
_ROW_STEP, _LONG_ROW_STEP = 64, 128  # a row's tokens are a multiple of this; what fills it up is never read
_LONG_ROW = 1024
_LENGTH_STEP = 16  # so are a group's queries and keys
_MATH_KEYS = 512  # up to so many keys the plain product is faster than the fused kernel in bfloat16 on a CPU (1.3 to 2 times)


@dataclass(frozen=True)
class _Group:
    """Documents of similar length, attended to in one call; the padding exists inside the attention only."""

    queries_GQ: Tensor  # index of each query in the row; 0 at padding
    keys_GK: Tensor  # index of each key in the row, those of the continued document first; 0 at padding
    mask_GQK: Tensor | None  # True where a query may see a key; None: plainly causal


@dataclass(frozen=True)
class PackedRow:
    """One row of documents, filled up with tokens that belong to none."""

    ids_N: Tensor
    positions_N: Tensor  # inside each document, counted on from the one that it continues
    starts_D: Tensor
    lengths_D: Tensor
    parents_D: Tensor  # the document that this one continues; -1: none
    groups: list[_Group]
    places_N: Tensor  # where each token's output lies among those of all groups
    read_R: Tensor | None = None  # the tokens whose last hidden state is read; None: all

    def reading(self, index_K: Tensor) -> "PackedRow":
        """Promise that of the last hidden states only those at `index_K` will be read: the others then need not be computed."""
        num_read = min(len(index_K) + count_filling(len(index_K)), len(self.ids_N))
        is_unread_N = torch.ones_like(self.ids_N, dtype=torch.bool)
        is_unread_N[index_K] = False
        return replace(self, read_R=is_unread_N.byte().argsort(stable=True)[:num_read])

    @property
    def lasts_D(self) -> Tensor:
        """Index of each document's last token."""
        return self.starts_D + self.lengths_D - 1


def pack(documents: Sequence[Sequence[int]], parents: Sequence[int] | None = None, device: torch.device | None = None) -> PackedRow:
    """Lay documents out in one row.

    Args:
        documents: token ids, none empty.
        parents: for each document the index of one that it continues, or -1; a parent has no parent itself.
        device: of the tensors.
    """
    ids_N = torch.tensor([token for document in documents for token in document])
    lengths_D = torch.tensor([len(document) for document in documents])
    return lay_out(ids_N if device is None else ids_N.to(device), lengths_D, None if parents is None else torch.tensor(parents))


def list_documents(rankings: Iterable[tuple[list[int], Iterable[list[int]]]]) -> tuple[list[list[int]], list[int]]:
    """List (prompt ids, responses) as documents and parents: each prompt once, followed by the responses that continue it."""
    documents: list[list[int]] = []
    parents: list[int] = []
    for prompt_ids, responses in rankings:
        prompt = len(documents)
        documents += [prompt_ids, *responses]
        parents += [-1] + [prompt] * (len(documents) - prompt - 1)
    return documents, parents


def lay_out(ids_N: Tensor, lengths_D: Tensor, parents_D: Tensor | None = None) -> PackedRow:
    """Say where the documents of a row lie.

    Args:
        ids_N: token ids of all documents, one after the other; the row lies on their device.
        lengths_D: tokens of each document.
        parents_D: see `pack`.

    Raises:
        ValueError: a document is empty, or a parent continues another document.
    """
    lengths_D = lengths_D.cpu()
    parents_D = torch.full_like(lengths_D, -1) if parents_D is None else parents_D.cpu()
    has_parent_D = parents_D >= 0
    if bool((lengths_D == 0).any()):
        raise ValueError("a document is empty; each needs at least one token")
    if bool((has_parent_D[parents_D[has_parent_D]]).any()):
        raise ValueError("a document continues one that continues another; only one level is possible")
    num_tokens = len(ids_N)
    ids_N = F.pad(ids_N, (0, count_filling(num_tokens)))
    starts_D = lengths_D.cumsum(0) - lengths_D
    offsets_D = torch.where(has_parent_D, lengths_D[parents_D], 0)
    owners_N = torch.repeat_interleave(torch.arange(len(lengths_D)), lengths_D)
    positions_N = F.pad(torch.arange(num_tokens) - starts_D[owners_N] + offsets_D[owners_N], (0, len(ids_N) - num_tokens))
    groups: list[_Group] = []
    places_N = torch.zeros(len(ids_N), dtype=torch.long)
    num_places = 0
    for members_G in _group_by_length(offsets_D, lengths_D):
        group = _make_group(starts_D, lengths_D, parents_D, offsets_D, members_G)
        lengths_G = F.pad(lengths_D[members_G], (0, len(group.queries_GQ) - len(members_G)))
        real_GQ = torch.arange(group.queries_GQ.shape[1]) < lengths_G[:, None]
        places_N[group.queries_GQ[real_GQ]] = num_places + real_GQ.flatten().nonzero()[:, 0]
        num_places += real_GQ.numel()
        groups.append(group)
    return _move(PackedRow(ids_N, positions_N, starts_D, lengths_D, parents_D, groups, places_N), ids_N.device)


def count_filling(num_tokens: int) -> int:
    """Say how many tokens fill a row (or what is read of it) up to a length that recurs."""
    return -num_tokens % (_LONG_ROW_STEP if num_tokens > _LONG_ROW else _ROW_STEP)


def _group_by_length(offsets_D: Tensor, lengths_D: Tensor) -> list[Tensor]:
    """Split documents into groups of similar length, those that continue another one apart."""
    keys_D = offsets_D + lengths_D
    groups: list[Tensor] = []
    for members_M in ((offsets_D == 0).nonzero()[:, 0], (offsets_D > 0).nonzero()[:, 0]):
        members_M = members_M[keys_D[members_M].argsort(stable=True)]
        start = 0
        keys: list[int] = keys_D[members_M].tolist()
        for index, length in enumerate(keys):
            if index - start == _GROUP_SIZE or length > keys[start] * _GROUP_GROWTH + _LENGTH_STEP:
                groups.append(members_M[start:index])
                start = index
        if len(members_M):
            groups.append(members_M[start:])
    return groups


def _make_group(starts_D: Tensor, lengths_D: Tensor, parents_D: Tensor, offsets_D: Tensor, members_G: Tensor) -> _Group:
    num_absent = (1 << (len(members_G) - 1).bit_length()) - len(members_G)  # up to a power of two
    starts_G, lengths_G, offsets_G, parents_G = (
        F.pad(tensor_D[members_G], (0, num_absent)) for tensor_D in (starts_D, lengths_D, offsets_D, parents_D)
    )
    queries_Q = torch.arange(_round_up(int(lengths_G.max())))
    queries_GQ = torch.where(queries_Q < lengths_G[:, None], starts_G[:, None] + queries_Q, 0)
    if not bool(offsets_G.any()):
        return _Group(queries_GQ, queries_GQ, None)
    keys_K = torch.arange(_round_up(int((offsets_G + lengths_G).max())))
    own_GK = keys_K - offsets_G[:, None]  # position inside the document itself; negative in the one that it continues
    keys_GK = torch.where(own_GK < 0, starts_D[parents_G][:, None] + keys_K, starts_G[:, None] + own_GK)
    keys_GK = torch.where(own_GK < lengths_G[:, None], keys_GK, 0)
    return _Group(queries_GQ, keys_GK, own_GK[:, None, :] <= queries_Q[:, None])


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def _move(row: PackedRow, device: torch.device) -> PackedRow:
    if device.type == "cpu":
        return row

    def move(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.to(device, non_blocking=True)

    groups = [_Group(move(group.queries_GQ), move(group.keys_GK), move(group.mask_GQK)) for group in row.groups]
    return PackedRow(
        row.ids_N,
        move(row.positions_N),
        move(row.starts_D),
        move(row.lengths_D),
        move(row.parents_D),
        groups,
        move(row.places_N),
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_row: PackedRow | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend inside the documents of a packed row; without one, attend like transformers' sdpa. Called by a model's own layers.

    Args:
        module: the attention layer.
        query, key, value: [1, heads, N, head size]; key and value may have fewer heads.
        attention_mask: of an ordinary batch; a packed row brings its own.
        scaling: of the products; 1 / √(head size) by default.
        dropout: of an ordinary batch.
        packed_row: which documents the row holds.

    Returns:
        ([1, N, heads, head size], None).
    """
    scaling = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    # Rotary embeddings promote queries and keys to float32 under autocast; the products are in bfloat16 either way.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if packed_row is None:
        if attention_mask is not None and _prefers_math(query, key.shape[2]):
            repeats = query.shape[1] // key.shape[1]
            output = _attend_plainly(query, repeat_kv(key, repeats), repeat_kv(value, repeats), attention_mask, scaling)
            return output.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    unsupported = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if kwargs.get(name) is not None]
    if unsupported:  # only `enable_packing` gets here, which then leaves the model as it was
        raise NotImplementedError(f"packed attention knows no {', '.join(unsupported)}")
    query_NAE, key_NAE, value_NAE = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    outputs = [_attend_group(query_NAE, key_NAE, value_NAE, group, scaling) for group in packed_row.groups]
    return torch.cat(outputs).index_select(0, packed_row.places_N)[None], None


def _attend_group(query_NAE: Tensor, key_NAE: Tensor, value_NAE: Tensor, group: _Group, scaling: float) -> Tensor:
    """Compute the outputs of one group, [G * Q, heads, head size]."""
    num_documents, num_queries = group.queries_GQ.shape

    def gather(tensor_NAE: Tensor, index: Tensor) -> Tensor:
        rows = tensor_NAE.index_select(0, index.flatten())
        return rows.view(*index.shape, *tensor_NAE.shape[1:]).transpose(1, 2)

    query_GAQE = gather(query_NAE, group.queries_GQ)
    repeats = query_NAE.shape[1] // key_NAE.shape[1]
    key_GAKE, value_GAKE = (repeat_kv(gather(tensor, group.keys_GK), repeats) for tensor in (key_NAE, value_NAE))
    mask = None if group.mask_GQK is None else group.mask_GQK[:, None]
    if _prefers_math(query_NAE, key_GAKE.shape[2]):
        if mask is None:
            mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=query_NAE.device).tril()
        output_GAQE = _attend_plainly(query_GAQE, key_GAKE, value_GAKE, mask, scaling)
    else:
        output_GAQE = F.scaled_dot_product_attention(query_GAQE, key_GAKE, value_GAKE, mask, scale=scaling, is_causal=mask is None)
    return output_GAQE.transpose(1, 2).reshape(num_documents * num_queries, *query_NAE.shape[1:])


def _prefers_math(query: Tensor, num_keys: int) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and num_keys <= _MATH_KEYS


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Compute softmax(q kᵀ · scaling) v; `mask` is boolean or additive."""
    # Autocast would widen the softmax to float32 and narrow its result again; the kernel itself sums in float32 either way.
    with torch.autocast(query.device.type, enabled=False):
        logits = (query * scaling) @ key.transpose(-1, -2)
        if mask.dtype == torch.bool:
            # Not −inf: a query in padding, which may see nothing, must not become NaN.
            mask = torch.zeros(mask.shape, dtype=logits.dtype, device=mask.device).masked_fill_(~mask, torch.finfo(logits.dtype).min)
        return torch.softmax(logits + mask.to(logits.dtype), dim=-1) @ value


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def enable_packing(model: Any) -> bool:
    """Switch a model's attention to ours, if packed documents then come out as separate forwards do; tried, not assumed.

    Returns:
        Whether it could be done; a model with another kind of attention (or a recurrent state) is left as it was.
    """
    if is_packed(model):
        return True
    backbone = model.base_model
    before = model.config._attn_implementation
    device = next(model.parameters()).device
    row = pack([[1, 2, 3], [4, 5], [6], [7, 8, 9, 1, 2]], [-1, 0, -1, 0], device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected_NH = compute_hidden_states(backbone, row).float()
        try:
            model.set_attn_implementation(PACKED)
            found_NH = compute_hidden_states(backbone, row).float()
            error_N = (found_NH - expected_NH).abs().amax(dim=1)[: int(row.lengths_D.sum())]
            works = bool(error_N.max() <= _PROBE_TOLERANCE * expected_NH.abs().max())
        except (NotImplementedError, ValueError, TypeError):  # the attention says that it cannot, or never gets to see the row
            works = False
    model.train(was_training)
    if not works:
        model.set_attn_implementation(before)
    return works


def is_packed(model: Any) -> bool:
    """Whether a model's attention was switched to ours."""
    return model.config._attn_implementation == PACKED


def compute_hidden_states(backbone: Any, row: PackedRow, read_K: Tensor | None = None) -> Tensor:
    """Compute the last hidden state of each token of the row, [N, hidden size], or only those at `read_K`, [K, hidden size]."""
    inputs, places_N = make_inputs(backbone, row if read_K is None else row.reading(read_K))
    return backbone(**inputs).last_hidden_state.flatten(0, 1)[places_N if read_K is None else places_N[read_K]]


def make_inputs(model: Any, row: PackedRow) -> tuple[dict[str, Any], Tensor]:
    """Give a model (or its backbone) the arguments that compute a row, and say where each token's output will lie.

    A model whose attention was not switched gets the same documents as a padded batch, one row for each that no other continues.

    Returns:
        (arguments of the forward, place of each of the N tokens in an output of which batch and position are flattened into one axis).
    """
    if not is_packed(model):
        return _pad(row)
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
    starts: list[int] = row.starts_D.tolist()
    lengths: list[int] = row.lengths_D.tolist()
    parents: list[int] = row.parents_D.tolist()
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
