"""The floor under a PPO update: the matrix products that its real tokens need, at the rate that this machine multiplies at.

Nothing else is counted: no attention, softmax, norms, sampling, optimizer, padding or Python. All layers are counted in full, though ours
leaves out the last one's MLP where nothing reads it (of 6 layers that is some 6 %). Torch-free.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.sizes import SIZES

PHASES = ("rollout", "score", "update", "total")


@dataclass(frozen=True)
class Product:
    """One linear layer: (rows, inputs) x (inputs, outputs), `count` times."""

    rows: int
    inputs: int
    outputs: int
    count: float = 1.0

    @property
    def flops(self) -> float:
        """Floating point operations: a multiplication and an addition each."""
        return 2.0 * self.rows * self.inputs * self.outputs * self.count


def list_backbone(size: str, tokens: int, passes: float = 1.0) -> list[Product]:
    """List the products of the layers over `tokens` tokens: q, k, v, o; gate and up; down."""
    shape = SIZES[size]
    times = shape.layers * passes
    return [
        Product(tokens, shape.hidden, shape.hidden, 4 * times),
        Product(tokens, shape.hidden, shape.intermediate, 2 * times),
        Product(tokens, shape.intermediate, shape.hidden, times),
    ]


def list_head(size: str, tokens: int, passes: float = 1.0) -> list[Product]:
    """List the product that gives the logits of `tokens` tokens."""
    return [Product(tokens, SIZES[size].hidden, SIZES[size].vocabulary, passes)]


def list_products(size: str, num_prompts: int, prompt_tokens: int, response_tokens: int, max_new_tokens: int, ppo_epochs: int) -> dict:
    """List the products of each phase of one update.

    Rollout: the prompts at once, then one token of all unfinished responses at a time (on average `response_tokens /
    max_new_tokens` rows). Score: policy, reference, critic and reward model over all tokens, logits of the first two at response
    tokens. Update: policy and critic; a backward pass costs two forward passes.
    """
    tokens = prompt_tokens + response_tokens
    live = max(round(response_tokens / max_new_tokens), 1)
    steps = response_tokens / live
    return {
        "rollout": list_backbone(size, prompt_tokens)
        + list_head(size, num_prompts)
        + list_backbone(size, live, steps)
        + list_head(size, live, steps),
        "score": list_backbone(size, tokens, 4) + list_head(size, response_tokens, 2),
        "update": list_backbone(size, tokens, 3 * 2 * ppo_epochs) + list_head(size, response_tokens, 3 * ppo_epochs),
    }


def list_shapes(products: dict[str, list[Product]]) -> Iterator[tuple[int, int, int]]:
    """List the different shapes that occur, for measuring."""
    yield from sorted({(product.rows, product.inputs, product.outputs) for phase in products.values() for product in phase})


def compute_floor_s(products: dict[str, list[Product]], flops_per_s: dict[tuple[int, int, int], float]) -> dict[str, float]:
    """Compute each phase's least seconds, and their sum as `total`."""
    seconds = {
        phase: sum(product.flops / flops_per_s[product.rows, product.inputs, product.outputs] for product in listed)
        for phase, listed in products.items()
    }
    return seconds | {"total": sum(seconds.values())}
