"""Attention inside the documents of a packed row, and of a token over its row of a cache: one of transformers' implementations, PACKED.

Axes: N tokens of the row, A attention heads, E head size; in a group of G documents, Q queries and K keys; B rows of a cache, C columns.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from stages.internals import repeat_kv, sdpa_attention_forward, sdpa_mask
from stages.models.kernels import is_cpu
from stages.models.packing import DocumentGroup, PackedRow, Spans

PACKED = "packed"  # the name of our attention among transformers' implementations
_MAX_HEAD_SIZE = 256  # of the kernel for documents of unequal lengths
_MATH_KEYS = 512  # up to so many keys the plain product is faster than the fused kernel in bfloat16 on a CPU (1.3 to 2 times)


@dataclass(frozen=True)
class CachedRows:
    """Which keys one query in each row of a cache sees: a run of its columns, told by tensors, so that a CUDA graph can go on with them.

    A token's place is counted over all rows and key heads of the cache, as they lie in memory: [rows, heads, columns].
    """

    query_ends: Tensor  # int32, [B + 1]: 0, 1, ... B
    key_starts: Tensor  # int32, [B + 1]: place of each row's first key, of its first head; the last one is not read
    lengths_B: Tensor  # int32: keys of each row
    longest: int  # columns of the cache, at least as many as any row has keys


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_row: PackedRow | None = None,
    cached_rows: CachedRows | None = None,
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
        cached_rows: what each query of a batch sees of keys and values that lie in a cache; the mask says the same. It is what is read
            where torch's kernel for sequences of unequal lengths computes them: no padding, and each key head once for all its queries.

    Returns:
        ([1, N, heads, head size], None).
    """
    scaling = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    lie_in_cache = cached_rows is not None and key.dtype == value.dtype
    # Rotary embeddings promote queries and keys to float32 under autocast; the products are in bfloat16 either way.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if packed_row is None:
        if cached_rows is not None and lie_in_cache and _takes_spans(query[:, :, 0]):
            return _attend_cached(query[:, :, 0], key, value, cached_rows, scaling)[:, None], None
        if attention_mask is not None and _prefers_math(query, key.shape[2]):
            repeats = query.shape[1] // key.shape[1]
            output = _attend_plainly(query, repeat_kv(key, repeats), repeat_kv(value, repeats), attention_mask, scaling)
            return output.transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    unsupported = [name for name in ("softcap", "s_aux", "position_bias", "sliding_window") if kwargs.get(name) is not None]
    if unsupported:  # only `enable_packing` gets here, which then leaves the model as it was
        raise NotImplementedError(f"packed attention knows no {', '.join(unsupported)}")
    query_NAE, key_NAE, value_NAE = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if _takes_spans(query_NAE):
        return _attend_spans(query_NAE, key_NAE, value_NAE, packed_row.spans, scaling)[None], None
    outputs = [_attend_group(query_NAE, key_NAE, value_NAE, group, scaling) for group in packed_row.groups]
    return torch.cat(outputs).index_select(0, packed_row.places_N)[None], None


def _takes_spans(query_NAE: Tensor) -> bool:
    """Whether torch's kernel for documents of unequal lengths computes such queries: on a GPU of NVIDIA's, in bfloat16.

    A build for AMD's calls its GPUs CUDA's, and has a kernel of that name that takes no lengths of keys.
    """
    if not query_NAE.is_cuda or query_NAE.dtype != torch.bfloat16 or torch.version.hip is not None:
        return False
    size = query_NAE.shape[2]
    fits = size <= _MAX_HEAD_SIZE and size % 8 == 0 and torch.backends.cuda.is_flash_attention_available()
    return fits and torch.cuda.get_device_capability(query_NAE.device) >= (8, 0)


def _attend_spans(query_NAE: Tensor, key_NAE: Tensor, value_NAE: Tensor, spans: Spans, scaling: float) -> Tensor:
    """Compute the outputs of a whole row, where its queries lie; only keys and values are gathered, where documents continue one."""
    from torch.nn.attention.varlen import varlen_attn  # a second of imports, which a CPU has no use for

    if spans.keys_M is not None:
        key_NAE, value_NAE = key_NAE.index_select(0, spans.keys_M), value_NAE.index_select(0, spans.keys_M)
    output: Any = varlen_attn(
        query_NAE,
        key_NAE,
        value_NAE,
        spans.query_ends,
        spans.key_ends,
        spans.longest_query,
        spans.longest_key,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    return output


def _attend_cached(query_BAE: Tensor, key_BACE: Tensor, value_BACE: Tensor, rows: CachedRows, scaling: float) -> Tensor:
    """Compute the output of one query a row; keys and values are the first columns of a cache's."""
    from torch.nn.attention.varlen import varlen_attn

    output: Any = varlen_attn(
        query_BAE,
        _list_tokens(key_BACE),
        _list_tokens(value_BACE),
        rows.query_ends,
        rows.key_starts,
        1,
        rows.longest,
        scale=scaling,
        enable_gqa=True,
        seqused_k=rows.lengths_B,
    )
    return output


def _list_tokens(cached_BACE: Tensor) -> Tensor:
    """View a cache as [places, heads, head size], where the place of a row's column in a further head is one that is not used."""
    num_rows, heads, num_columns, size = cached_BACE.shape
    row_stride, head_stride, column_stride, _ = cached_BACE.stride()
    places = (num_rows - 1) * (row_stride // column_stride) + num_columns
    return cached_BACE.as_strided((places, heads, size), (column_stride, head_stride, 1))


def _attend_group(query_NAE: Tensor, key_NAE: Tensor, value_NAE: Tensor, group: DocumentGroup, scaling: float) -> Tensor:
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
    return is_cpu(query) and query.dtype == torch.bfloat16 and num_keys <= _MATH_KEYS


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Compute softmax(q kᵀ · scaling) v; `mask` is boolean or additive."""
    # Autocast would widen the softmax to float32 and narrow its result again; the kernel itself sums in float32 either way.
    with torch.autocast(query.device.type, enabled=False):
        logits = (query * scaling) @ key.transpose(-1, -2)
        if mask.dtype == torch.bool:
            # Not −inf: a query in padding, which may see nothing, must not become NaN.
            mask = torch.zeros(mask.shape, dtype=logits.dtype, device=mask.device).masked_fill_(~mask, torch.finfo(logits.dtype).min)
        return torch.softmax(logits + mask.to(logits.dtype), dim=-1) @ value


def keep_from_compiling() -> None:
    """Have torch.compile leave this attention as it is: it loops over groups."""
    AttentionInterface.register(PACKED, torch.compiler.disable(attend))


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
