"""Documents of unequal length in one row, without padding, each blind to the others; a document may continue another one.

token ids -> PackedRow, which stages.models.forward computes

A rollout's prompt and response are one document. A comparison is a prompt and K answers that continue it: the prompt is computed once,
and every answer attends to the prompt's keys and values (gradient included) and to its own. Both equal separate forwards to rounding.

Axes: N tokens of the row (its filling included), D documents; in a group of G documents of similar length Q is the longest of them
and K the longest with what it continues.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.process.gpu import send

_GROUP_SIZE = 16  # documents attended to in one call, at most
_GROUP_GROWTH = 2.0  # and the longest over the shortest of them
# bfloat16 products on a CPU run by kernels that are generated for each shape and kept: shapes that recur save a third of a step.
_ROW_STEP, _LONG_ROW_STEP = 64, 128  # a row's tokens are a multiple of this; what fills it up is never read
_LONG_ROW = 1024
_LENGTH_STEP = 16  # so are a group's queries and keys
RANKING_PROMPTS, RANKING_TOKENS = 32, 16_384  # of a row: prompts with all their responses, and their tokens

Rankings = Sequence[tuple[list[int], Sequence[list[int]]]]  # prompt ids, and the ids of each response


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of similar length, attended to in one call; the padding exists inside the attention only."""

    queries_GQ: Tensor  # index of each query in the row; 0 at padding
    keys_GK: Tensor  # index of each key in the row, those of the continued document first; 0 at padding
    mask_GQK: Tensor | None  # True where a query may see a key; None: plainly causal


@dataclass(frozen=True)
class Spans:
    """The documents of a row as torch's attention over sequences of unequal lengths takes them; what fills the row up is the last one.

    A document's queries are its own tokens; its keys are those of the document that it continues, then its own. With as many queries as
    that, the last of them stands at the last key, and sees all before.
    """

    keys_M: Tensor | None  # index of each key in the row; None: the row itself
    query_ends: Tensor  # int32, [documents + 1]: where in the row each document begins, and where the last one ends
    key_ends: Tensor  # the same among the keys
    longest_query: int
    longest_key: int


@dataclass(frozen=True)
class PackedRow:
    """One row of documents, filled up with tokens that belong to none. How they are attended to is laid out when it is asked for."""

    ids_N: Tensor
    positions_N: Tensor  # inside each document, counted on from the one that it continues
    starts_D: Tensor
    lengths_D: Tensor
    parents_D: Tensor  # the document that this one continues; -1: none
    layout_3D: Tensor  # the last three once more, on the CPU

    @property
    def lasts_D(self) -> Tensor:
        """Index of each document's last token."""
        return self.starts_D + self.lengths_D - 1

    @property
    def groups(self) -> list[DocumentGroup]:
        """All documents, in groups of similar length."""
        return self._grouped[0]

    @property
    def places_N(self) -> Tensor:
        """Where each token's output lies among those of all groups."""
        return self._grouped[1]

    @functools.cached_property
    def _grouped(self) -> tuple[list[DocumentGroup], Tensor]:
        groups, places_N = _group(self.layout_3D, len(self.ids_N))
        return [_move(group, self.ids_N.device) for group in groups], _move(places_N, self.ids_N.device)

    @functools.cached_property
    def spans(self) -> Spans:
        """The documents one after the other."""
        return _move(make_spans(self.layout_3D, len(self.ids_N)), self.ids_N.device)


def pack(documents: Sequence[Sequence[int]], parents: Sequence[int] | None = None, device: torch.device | None = None) -> PackedRow:
    """Lay documents out in one row.

    Args:
        documents: token ids, none empty.
        parents: for each document the index of one that it continues, or -1; a parent has no parent itself.
        device: of the tensors.
    """
    ids_N = torch.tensor([token for document in documents for token in document])
    lengths_D = torch.tensor([len(document) for document in documents])
    return lay_out(ids_N if device is None else send(ids_N, device), lengths_D, None if parents is None else torch.tensor(parents))


def list_documents(rankings: Iterable[tuple[list[int], Iterable[list[int]]]]) -> tuple[list[list[int]], list[int]]:
    """List (prompt ids, responses) as documents and parents: each prompt once, followed by the responses that continue it."""
    documents: list[list[int]] = []
    parents: list[int] = []
    for prompt_ids, responses in rankings:
        prompt = len(documents)
        documents += [prompt_ids, *responses]
        parents += [-1] + [prompt] * (len(documents) - prompt - 1)
    return documents, parents


def pack_rankings(rankings: Rankings, device: torch.device) -> Iterator[tuple[PackedRow, int]]:
    """Lay prompts and the responses that continue them out in rows; yields each row, and how many prompts are laid out with it."""
    lengths = [len(prompt) + sum(map(len, responses)) for prompt, responses in rankings]
    for run in split_by_tokens(lengths, RANKING_TOKENS, RANKING_PROMPTS):
        yield pack(*list_documents(rankings[run]), device), run.stop


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
    layout_3D = torch.stack([starts_D, lengths_D, parents_D])
    moved_3D: Tensor = _move(layout_3D, ids_N.device)
    return PackedRow(ids_N, _move(positions_N, ids_N.device), moved_3D[0], moved_3D[1], moved_3D[2], layout_3D)


def _group(layout_3D: Tensor, num_tokens: int) -> tuple[list[DocumentGroup], Tensor]:
    """Group the documents of a row; returns (groups, places_N of `num_tokens`)."""
    starts_D, lengths_D, parents_D = layout_3D
    offsets_D = torch.where(parents_D >= 0, lengths_D[parents_D], 0)
    groups: list[DocumentGroup] = []
    places_N = torch.zeros(num_tokens, dtype=torch.long)
    num_places = 0
    for members_G in _group_by_length(offsets_D, lengths_D):
        group = _make_group(starts_D, lengths_D, parents_D, offsets_D, members_G)
        lengths_G = F.pad(lengths_D[members_G], (0, len(group.queries_GQ) - len(members_G)))
        real_GQ = torch.arange(group.queries_GQ.shape[1]) < lengths_G[:, None]
        places_N[group.queries_GQ[real_GQ]] = num_places + real_GQ.flatten().nonzero()[:, 0]
        num_places += real_GQ.numel()
        groups.append(group)
    return groups, places_N


def make_spans(layout_3D: Tensor, num_tokens: int) -> Spans:
    """Lay the documents of a row of `num_tokens` out one after the other.

    Two documents of 2 and 3 tokens, the second of which continues the first, in a row of 6: queries end at [0 2 5 6], keys are those at
    [0 1, 0 1 2 3 4, 5] and end at [0 2 7 8].
    """
    starts_D, lengths_D, parents_D = layout_3D
    num_real = int(lengths_D.sum())
    if num_tokens > num_real:  # a document of its own: what belongs to none would come out undefined
        starts_D, lengths_D = F.pad(starts_D, (0, 1), value=num_real), F.pad(lengths_D, (0, 1), value=num_tokens - num_real)
        parents_D = F.pad(parents_D, (0, 1), value=-1)
    offsets_D = torch.where(parents_D >= 0, lengths_D[parents_D], 0)
    key_lengths_D = offsets_D + lengths_D
    query_ends, key_ends = (F.pad(tensor_D.cumsum(0), (1, 0)).int() for tensor_D in (lengths_D, key_lengths_D))
    keys_M = None
    if bool(offsets_D.any()):
        owners_M = torch.repeat_interleave(torch.arange(len(lengths_D)), key_lengths_D)
        place_M = torch.arange(len(owners_M)) - key_ends[owners_M]
        own_M = place_M - offsets_D[owners_M]  # negative in the document that this one continues
        keys_M = torch.where(own_M < 0, starts_D[parents_D][owners_M] + place_M, starts_D[owners_M] + own_M)
    return Spans(keys_M, query_ends, key_ends, int(lengths_D.max()), int(key_lengths_D.max()))


def split_by_tokens(lengths: Iterable[int], max_tokens: int, max_items: int | None = None) -> Iterator[slice]:
    """Split items, in their order, into runs of at most so many tokens and items each; one that is longer stands alone.

    `split_by_tokens([3, 4, 9, 2], 8)` yields 0:2, 2:3 and 3:4.
    """
    start, end, total = 0, -1, 0
    for end, length in enumerate(lengths):
        if end > start and (total + length > max_tokens or end - start == max_items):
            yield slice(start, end)
            start, total = end, 0
        total += length
    if end >= 0:
        yield slice(start, end + 1)


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


def _make_group(starts_D: Tensor, lengths_D: Tensor, parents_D: Tensor, offsets_D: Tensor, members_G: Tensor) -> DocumentGroup:
    """Say where the queries and the keys of some documents lie in the row.

    Two documents of 2 and 3 tokens, the second of which continues the first, lie in the row as a0 a1 b0 b1 b2. The group of the first:
    queries = keys = [0 1], plainly causal. The group of the second: queries [2 3 4], keys [0 1 2 3 4], and the query at 2 sees
    the keys 0 1 2, the one at 3 also 3, the one at 4 all. Both axes are filled up with index 0 to a multiple of `_LENGTH_STEP`,
    and the documents of a group to a power of two.

    Args:
        starts_D: where each document of the row begins.
        lengths_D: its tokens.
        parents_D: the document that it continues, or -1.
        offsets_D: tokens of that one, or 0.
        members_G: the documents of the group.
    """
    num_absent = (1 << (len(members_G) - 1).bit_length()) - len(members_G)  # up to a power of two
    starts_G, lengths_G, offsets_G, parents_G = (
        F.pad(tensor_D[members_G], (0, num_absent)) for tensor_D in (starts_D, lengths_D, offsets_D, parents_D)
    )
    queries_Q = torch.arange(_round_up(int(lengths_G.max())))
    queries_GQ = torch.where(queries_Q < lengths_G[:, None], starts_G[:, None] + queries_Q, 0)
    if not bool(offsets_G.any()):
        return DocumentGroup(queries_GQ, queries_GQ, None)
    keys_K = torch.arange(_round_up(int((offsets_G + lengths_G).max())))
    own_GK = keys_K - offsets_G[:, None]  # position inside the document itself; negative in the one that it continues
    keys_GK = torch.where(own_GK < 0, starts_D[parents_G][:, None] + keys_K, starts_G[:, None] + own_GK)
    keys_GK = torch.where(own_GK < lengths_G[:, None], keys_GK, 0)
    return DocumentGroup(queries_GQ, keys_GK, own_GK[:, None, :] <= queries_Q[:, None])


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def _move(thing: Any, device: torch.device) -> Any:
    """Move a tensor, or the tensors of a group or of spans, without waiting for the device."""
    if device.type == "cpu" or thing is None or isinstance(thing, int):
        return thing
    if isinstance(thing, Tensor):
        return send(thing, device)
    return type(thing)(**{name: _move(value, device) for name, value in vars(thing).items()})
