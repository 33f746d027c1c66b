"""Every record weighs alike, in an epoch's odd last batch too, whatever the micro-batch size and the number of processes.

accelerate gives all processes equally many full micro-batches: where the records do not divide, the last round begins again with the
first ones. Here what was given out twice weighs nothing, and a step's loss is divided by what all its micro-batches weigh together.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from stages.process.context import Told
from stages.process.gpu import send
from stages.process.ranks import Ranks

Batch = dict[str, Tensor]
Trainer = SFTTrainer | RewardTrainer
# (batch, number of rows from its start that count) -> the batch with the others left out of every loss.
Keep = Callable[[Batch, int], Batch]
# What a batch weighs: the number of items that its loss is a mean over.
Weigh = Callable[[Batch], Tensor]


class Evaluation(NamedTuple):
    """What transformers' trainers take from an `evaluation_loop`."""

    metrics: dict[str, float]
    num_samples: int


def count_unrepeated(num_records: int, micro_batch_size: int, rank: int, num_ranks: int) -> int:
    """Count the records in a rank's last micro-batch of an epoch that were not given out before.

    Each round gives `micro_batch_size` records to rank 0, then to rank 1, and so on; records that come again stand at the round's end.
    """
    in_round = micro_batch_size * num_ranks
    in_last_round = num_records % in_round or in_round
    return min(max(in_last_round - rank * micro_batch_size, 0), micro_batch_size)


def leave_on_cpu(loader: Any) -> Any:
    """Have a loader's batches stay on the CPU, where is counted how they lie in a row: a GPU would be waited for at each number."""
    loader.device = None
    return loader


def draw_step(trainer: Trainer, batches: Iterable[Batch], num_batches: int, keep: Keep, weigh: Weigh) -> tuple[list[Batch], Tensor]:
    """Draw the micro-batches of one optimizer step of this rank.

    Returns:
        (micro-batches, what those of all ranks weigh together).
    """
    records: Any = trainer.train_dataset
    fresh = _without_repeats(trainer, batches, len(records), trainer.args.train_batch_size, keep)
    drawn = list(itertools.islice(fresh, num_batches))
    ranks = Ranks(trainer.accelerator)
    weight = sum((weigh(batch) for batch in drawn), torch.zeros((), dtype=torch.long, device=ranks.device))
    return drawn, ranks.sum(weight)


@torch.no_grad()
def evaluate_records(trainer: Trainer, batches: Any, prefix: str, keep: Keep, weigh: Weigh, told: Told) -> Evaluation:
    """Compute the mean loss of held-out records, over all ranks, each record once; the trainer's `compute_loss` takes further figures."""
    model: Any = trainer.model
    model.eval()
    ranks = Ranks(trainer.accelerator)
    num_records = len(batches.dataset)
    total, weight = torch.zeros((2,), dtype=torch.float64, device=ranks.device)
    for done, batch in enumerate(_without_repeats(trainer, batches, num_records, trainer.args.eval_batch_size, keep), start=1):
        told(done, len(batches))
        batch_weight = send(weigh(batch), ranks.device)
        loss: Any = trainer.compute_loss(model, batch)
        # A batch of repeated records alone has no loss, which may read as not-a-number; it must not hide a loss that is one.
        total += torch.where(batch_weight > 0, loss * batch_weight, 0.0)
        weight += batch_weight
    total, weight = ranks.sum(torch.stack([total, weight])).tolist()
    return Evaluation({f"{prefix}_loss": total / max(weight, 1.0)}, num_records)


def _without_repeats(trainer: Trainer, batches: Iterable[Batch], num_records: int, micro_batch_size: int, keep: Keep) -> Iterator[Batch]:
    accelerator = trainer.accelerator
    kept = count_unrepeated(num_records, micro_batch_size, accelerator.process_index, accelerator.num_processes)
    for batch in batches:
        yield keep(batch, kept) if accelerator.gradient_state.end_of_dataloader else batch
