"""Which prompts come next: without replacement, a fresh permutation per pass, each rank its own shard."""

import torch

from stages.process.seeds import derive_seed


class PromptSampler:
    """Walks through seeded permutations of the prompts; its state is a cursor."""

    def __init__(self, num_prompts: int, seed: int) -> None:
        if num_prompts < 1:
            raise ValueError("0 prompts; needed: at least one to sample from")
        self.num_prompts = num_prompts
        self.seed = seed
        self.cursor = 0  # prompts drawn so far, over all passes and ranks

    def draw(self, batch_size: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """Draw the next `batch_size` prompts of all ranks and return the indices of this rank's shard."""
        positions = range(self.cursor + rank, self.cursor + batch_size, world_size)
        self.cursor += batch_size
        permutations = {epoch: self._permute(epoch) for epoch in {position // self.num_prompts for position in positions}}
        return [permutations[position // self.num_prompts][position % self.num_prompts] for position in positions]

    def _permute(self, epoch: int) -> list[int]:
        # A pass has its own seed, so that a resumed run needs the cursor and nothing else.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        return torch.randperm(self.num_prompts, generator=generator).tolist()
