"""Which records of a step each process gets, where there are several: about as many tokens as the others, in each micro-batch too.

accelerate hands micro-batches out in turn as they were drawn, so that of 64 demonstrations on 8 processes one may get twice the tokens of
another, for which it waits. Which records make a step is not changed; on a CPU nothing is, so that a recipe keeps its weights to the last
digit.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from stages.process.context import StageContext, uses_gpu
from stages.process.dealing import Numbers, deal


class DealtSampler(Sampler[int]):
    """Records in the order in which another sampler draws them, but dealt anew within each step."""

    def __init__(self, drawn: Any, sizes: Numbers, micro_batch_size: int, accumulation_steps: int, num_ranks: int) -> None:
        """Deal what a sampler draws.

        Args:
            drawn: the sampler.
            sizes: tokens of each record.
            micro_batch_size: of a process.
            accumulation_steps: micro-batches of a process in a step.
            num_ranks: number of processes.
        """
        self.drawn, self.sizes = drawn, sizes
        self.micro_batch_size, self.accumulation_steps, self.num_ranks = micro_batch_size, accumulation_steps, num_ranks

    def __len__(self) -> int:
        return len(self.drawn)

    def __iter__(self) -> Iterator[int]:
        drawn = iter(self.drawn)
        in_step = self.micro_batch_size * self.accumulation_steps * self.num_ranks
        while len(step := np.array(list(islice(drawn, in_step)), dtype=np.int64)):
            yield from step[self._lay_out(self.sizes[step])].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Have the sampler draw as in this epoch."""
        self.drawn.set_epoch(epoch)

    def _lay_out(self, sizes: Numbers) -> Numbers:
        """Say which record of a step stands where: each process takes `micro_batch_size` in turn; the last step may be short."""
        starts_AW = np.arange(self.accumulation_steps * self.num_ranks).reshape(-1, self.num_ranks) * self.micro_batch_size
        counts_AW = np.clip(len(sizes) - starts_AW, 0, self.micro_batch_size)
        order = np.zeros(len(sizes), dtype=np.int64)
        for rank, own in enumerate(deal(sizes, counts_AW.sum(axis=0).tolist())):
            for start, micro_batch in zip(starts_AW[:, rank], deal(sizes[own], counts_AW[:, rank].tolist()), strict=True):
                order[start : start + len(micro_batch)] = own[micro_batch]
        return order


def deals_evenly(context: StageContext) -> bool:
    """Say whether the records of a step are dealt anew: on several GPUs."""
    return context.world_size > 1 and uses_gpu(context)


def deal_evenly(trainer: Any, loader: Any, sizes: Numbers | None) -> Any:
    """Have a trainer's loader of batches deal records of so many tokens; None: it stays as it is."""
    if sizes is not None:
        layout = (trainer.args.train_batch_size, trainer.args.gradient_accumulation_steps, trainer.args.world_size)
        loader.set_sampler(DealtSampler(loader.get_sampler(), sizes, *layout))
    return loader
