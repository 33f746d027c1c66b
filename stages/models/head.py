"""The scalar head of a reward model: its name in transformers' classifiers, and its precision."""

import torch

HEAD = "score"


class Float32Head(torch.nn.Linear):
    """The scalar head, computed in float32 even under autocast: differences of scores drown in bfloat16's rounding."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())
