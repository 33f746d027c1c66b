"""The models of the bench: Llamas with untied embeddings. Torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Shape of a model."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Weights of the policy, in numbers: embeddings, head, attention, MLP and norms."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return 2 * self.vocabulary * self.hidden + self.layers * layer + self.hidden


SIZES = {
    "tiny": Size(hidden=32, layers=2, heads=2, intermediate=64, vocabulary=128),  # for the bench's own test
    "small": Size(hidden=256, layers=6, heads=4, intermediate=688, vocabulary=4096),
    "wide": Size(hidden=768, layers=12, heads=12, intermediate=2048, vocabulary=32000),  # 134 M: weights outweigh activations
    "1b": Size(hidden=2048, layers=16, heads=16, intermediate=8192, vocabulary=32000),  # 1.2 B, for GPUs
    "big": Size(hidden=512, layers=8, heads=8, intermediate=1376, vocabulary=8192),
}
