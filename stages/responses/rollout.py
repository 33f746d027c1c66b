"""What was said: prompts and sampled responses.

Axes: B responses of this rank, P prompt tokens (padded on the left), R response tokens (padded on the right), T = P + R; K all real
response tokens, response after response. Only these small per-token figures are padded: models compute packed rows.
Masks are True at a real token. A mask comes from lengths, never from comparing with the pad token: a policy may sample that.
"""

from dataclasses import dataclass, field, fields
from typing import Self, cast

import torch
from torch import Tensor

from stages.models.packing import PackedRow, lay_out
from stages.process.gpu import send


@dataclass(frozen=True)
class Rollout:
    """Prompts and sampled responses."""

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BR: Tensor  # the sampled tokens, up to and including the first stop token
    response_mask_BR: Tensor
    finished_B: Tensor  # True where the response ended with the configured stop token
    engine_logprobs_BR: Tensor  # of each token as the engine that sampled it computed it, float32; 0 outside the mask
    # Real tokens of each prompt and each response, on the CPU, where rows are laid out: to ask a GPU for them would be to wait for it.
    lengths_2B: Tensor = field(default=cast("Tensor", None), kw_only=True)

    def __post_init__(self) -> None:
        if self.lengths_2B is None:  # pyright: ignore[reportUnnecessaryComparison]
            lengths_2B = torch.stack([self.prompt_mask_BP.sum(dim=1), self.response_mask_BR.sum(dim=1)]).cpu()
            object.__setattr__(self, "lengths_2B", lengths_2B)
        num_responses = len(self.finished_B)
        for ids, mask in ((self.prompt_ids_BP, self.prompt_mask_BP), (self.response_ids_BR, self.response_mask_BR)):
            if ids.shape != mask.shape or len(ids) != num_responses or mask.dtype != torch.bool:
                raise ValueError(f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)} {mask.dtype} do not fit {num_responses} responses")
        if self.engine_logprobs_BR.shape != self.response_ids_BR.shape:
            raise ValueError(f"engine_logprobs_BR is {tuple(self.engine_logprobs_BR.shape)}; needed: {tuple(self.response_ids_BR.shape)}")
        if not bool(self.lengths_2B[1].all()):
            raise ValueError("a response has no token; every response needs at least one")

    @property
    def input_ids_BT(self) -> Tensor:
        """Prompt and response, one row each."""
        return torch.cat([self.prompt_ids_BP, self.response_ids_BR], dim=1)

    @property
    def response_lengths_B(self) -> Tensor:
        """Real tokens of each response."""
        return self.response_mask_BR.sum(dim=1)

    def select(self, rows_b: Tensor) -> Self:
        """Take some responses, without the columns that are padding in all of them; rows on the CPU."""
        lengths_2b = self.lengths_2B[:, rows_b]
        num_prompt_tokens, num_response_tokens = lengths_2b.max(dim=1).values.tolist()
        rows_b = send(rows_b, self.prompt_ids_BP.device)
        selected: dict[str, Tensor] = {"lengths_2B": lengths_2b}
        for name in (each.name for each in fields(self) if each.name not in selected):
            tensor = getattr(self, name)[rows_b]
            if name.endswith("_BP"):
                tensor = tensor[:, tensor.shape[1] - num_prompt_tokens :]
            elif name.endswith("_BR"):
                tensor = tensor[:, :num_response_tokens]
            selected[name] = tensor
        return type(self)(**selected)

    def pack(self) -> tuple[PackedRow, Tensor]:
        """Lay prompts and responses out without padding, one document each.

        Returns:
            (row, predictors_K: index in the row of the token before each response token).
        """
        prompts_B, responses_B = self.lengths_2B
        lengths_B = prompts_B + responses_B
        owners_N = torch.repeat_interleave(torch.arange(len(lengths_B)), lengths_B)
        places_N = torch.arange(len(owners_N)) - (lengths_B.cumsum(0) - lengths_B)[owners_N]  # inside the document
        # Padding is before the prompt and behind the response: a document lies in one piece, around the column where its response begins.
        num_prompt_columns, num_columns = self.prompt_ids_BP.shape[1], self.prompt_ids_BP.shape[1] + self.response_ids_BR.shape[1]
        index_N = owners_N * num_columns + num_prompt_columns - prompts_B[owners_N] + places_N
        predictors_K = (places_N >= prompts_B[owners_N]).nonzero()[:, 0] - 1
        device = self.prompt_ids_BP.device
        ids_N = self.input_ids_BT.flatten()[send(index_N, device)]
        return lay_out(ids_N, lengths_B), send(predictors_K, device)

    def unpack(self, values_K: Tensor) -> Tensor:
        """Put a figure of each response token where it belongs, [B, R]; 0 outside the mask."""
        # By places that the CPU counts: the backward pass of a masked_scatter asks the GPU how many there are, and waits for it.
        num_columns = self.response_mask_BR.shape[1]
        places_K = (torch.arange(num_columns) < self.lengths_2B[1][:, None]).flatten().nonzero()[:, 0]
        flat = torch.zeros(self.response_mask_BR.numel(), device=values_K.device)
        return flat.scatter(0, send(places_K, values_K.device), values_K).view(-1, num_columns)

    def split(self, max_tokens: int, at_least: int = 1) -> list[Tensor]:
        """Split into micro-batches of at most `max_tokens` tokens, responses of similar length together.

        Args:
            max_tokens: of a micro-batch; a response longer than that has one of its own.
            at_least: micro-batches, no more than there are responses.

        Returns:
            The rows of each, on the CPU.
        """
        lengths_B = self.lengths_2B.sum(dim=0)
        rows_B = lengths_B.argsort(stable=True)
        micro_batches: list[Tensor] = []
        start, tokens = 0, 0
        for index, length in enumerate(lengths_B[rows_B].tolist()):
            if tokens + length > max_tokens and index > start:
                micro_batches.append(rows_B[start:index])
                start, tokens = index, 0
            tokens += length
        micro_batches.append(rows_B[start:])
        while len(micro_batches) < at_least:
            fullest = max(range(len(micro_batches)), key=lambda index: len(micro_batches[index]))
            micro_batches[fullest : fullest + 1] = micro_batches[fullest].tensor_split(2)
        return micro_batches


def pack_rollout(
    prompts: list[list[int]],
    responses: list[list[int]],
    finished: list[bool],
    pad_token_id: int,
    device: torch.device,
    logprobs: list[list[float]] | None = None,
) -> Rollout:
    """Pad prompts on the left and responses on the right.

    Args:
        prompts: token ids.
        responses: token ids, up to and including the first stop token.
        finished: whether that is the configured one.
        pad_token_id: fills the rows.
        device: of the tensors.
        logprobs: of the responses' tokens, by the engine that sampled them; None for responses that no engine sampled: 0.
    """
    num_prompt_tokens = max(map(len, prompts))
    num_response_tokens = max(map(len, responses))
    prompt_ids = [[pad_token_id] * (num_prompt_tokens - len(ids)) + ids for ids in prompts]
    prompt_mask = [[False] * (num_prompt_tokens - len(ids)) + [True] * len(ids) for ids in prompts]
    response_ids = [ids + [pad_token_id] * (num_response_tokens - len(ids)) for ids in responses]
    response_mask = [[True] * len(ids) + [False] * (num_response_tokens - len(ids)) for ids in responses]
    logprobs = logprobs or [[0.0] * len(ids) for ids in responses]
    engine_logprobs = [row + [0.0] * (num_response_tokens - len(row)) for row in logprobs]
    columns = (prompt_ids, prompt_mask, response_ids, response_mask, finished, engine_logprobs)
    return Rollout(*(torch.tensor(rows, device=device) for rows in columns))
