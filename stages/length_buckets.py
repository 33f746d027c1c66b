"""Random batches of items of similar length: less padding, no item left out, the same order for the same seed and epoch."""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

_BATCHES_PER_CHUNK = 16  # sorted inside chunks of this many batches: enough to save padding, few enough to stay random


class LengthBucketSampler(Sampler[int]):
    """Yield indices so that each run of `batch_size` has similar lengths.

    Shuffle all; sort by length inside chunks of 16 batches; shuffle the batches.

    Args:
        lengths: length of each item.
        batch_size: items per optimizer step.
        seed: with the epoch, it decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; the data loader calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = random.Random(f"{self.seed}-{self.epoch}")
        indices = list(range(len(self.lengths)))
        generator.shuffle(indices)
        chunk_size = self.batch_size * _BATCHES_PER_CHUNK
        batches: list[list[int]] = []
        for start in range(0, len(indices), chunk_size):
            chunk = sorted(indices[start : start + chunk_size], key=lambda index: self.lengths[index])
            batches += [chunk[at : at + self.batch_size] for at in range(0, len(chunk), self.batch_size)]
        # A short batch stays last: a sampler's consumer cuts its batches by count.
        short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        generator.shuffle(batches)
        return (index for batch in batches + short for index in batch)
