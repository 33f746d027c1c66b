"""An exponential moving average of the policy's weights over the optimizer steps (InstructGPT 2022, appendix C).

PPO's last weights carry the noise of its last rollouts; their average has less of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def move_average(average: Tensor, value: Tensor, decay: float) -> Tensor:
    """Move an average towards a new value: ā ← d · ā + (1 − d) · x; d is `decay`.

    Computed as ā + (1 − d) · (x − ā): an average that equals the value stays as it is, to the last bit.
    """
    return average.lerp(value, 1.0 - decay)


class AveragedWeights:
    """Averages of a module's trainable weights; they begin as the weights themselves."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Begin to average.

        Args:
            module: whose trainable weights are averaged; the average lies on the same device.
            decay: share of the average that an update keeps, in [0, 1).
        """
        self.decay = decay
        self._parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of the moment; called after each optimizer step."""
        for name, parameter in self._parameters.items():
            self.averages[name] = move_average(self.averages[name], parameter, self.decay)

    @torch.no_grad()
    def load(self, averages: dict[str, Tensor]) -> None:
        """Go back to averages of a checkpoint."""
        for name, average in self.averages.items():
            average.copy_(averages[name])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, the module computes with the averages; afterwards, whatever happened inside, with its own weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Nothing is copied: parameters and averages exchange their storage.
        for name, parameter in self._parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data
