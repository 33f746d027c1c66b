"""Hidden states -> logits, as the model's own code makes them: with its cap, its scale, and whatever else it does there.

Axes: K tokens, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from stages.internals import replace_child


def compute_logits(model: Any, hidden_KH: Tensor, *, own_head: bool) -> Tensor:
    """Compute logits_KV of last hidden states.

    Args:
        model: a causal language model, without an adapter's wrapper.
        hidden_KH: of its backbone.
        own_head: run the model's own forward, its backbone giving these states; else its output embeddings alone.
    """
    if not own_head:
        return model.get_output_embeddings()(hidden_KH)
    above = replace_child(model, model.base_model_prefix, _GivenStates(model.base_model, hidden_KH[None]))
    # One token for each state: some forwards look at the shape of what they are given.
    tokens_1K = torch.zeros(1, len(hidden_KH), dtype=torch.long, device=hidden_KH.device)
    return type(model).forward(above, input_ids=tokens_1K, use_cache=False).logits[0]


class _Output(dict[str, Any]):
    """What a backbone returns, with nothing but its states: whatever else is asked for is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return self.get("last_hidden_state") if key == 0 else self.get(key)


class _GivenStates(nn.Module):
    """Stands in for a backbone that has been computed already; what else the head asks of it is the backbone's."""

    def __init__(self, backbone: nn.Module, hidden_1KH: Tensor) -> None:
        super().__init__()
        self.backbone_holder = (backbone,)  # not a child: nothing of it is called
        self.hidden_1KH = hidden_1KH

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["backbone_holder"][0], name)

    def forward(self, *_inputs: Any, **_more: Any) -> _Output:
        return _Output(last_hidden_state=self.hidden_1KH)
