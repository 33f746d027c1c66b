"""A reward model: begin one, load one, ask one for scores.

It is a sequence classifier with one label, see stages.models.classifier; stages.models.calibration makes scores of its logits.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.blocks import HardwareSettings
from stages.models.adapters import find_model, is_unmerged_adapter, share_weights
from stages.models.calibration import Calibration, read_calibration
from stages.models.classifier import find_classifier
from stages.models.forward import compute_hidden_states
from stages.models.head import HEAD, Float32Head
from stages.models.packing import PackedRow
from stages.models.policy import load_policy
from stages.models.precision import autocast
from stages.models.weights import load_weights
from stages.process.engine import Engine
from stages.process.gpu import prepare_gpu


def init_reward_model(
    path: str, hardware: HardwareSettings, seed: int, *, engine: Engine | None = None, on_cpu: bool = False
) -> PreTrainedModel:
    """Start a reward model from an SFT model: its backbone, and a scalar head drawn from N(0, 1/(d+1)) (N+ details, 10)."""
    if is_unmerged_adapter(Path(path)):
        # peft opens an adapter only on the kind of model that it was trained on: merge there, then take the backbone.
        model: Any = put_head_on(load_policy(path, hardware, engine=engine, on_cpu=on_cpu))
    else:
        model = load_weights("SEQ_CLS", path, hardware, engine=engine, new_head=True, on_cpu=on_cpu)
    head = model.get_submodule(HEAD)
    generator = torch.Generator().manual_seed(seed)
    std = 1 / math.sqrt(head.in_features + 1)
    head.weight.data.copy_(torch.randn(head.weight.shape, generator=generator) * std)
    model.calibration = Calibration()
    return model


def load_reward_model(path: str, hardware: HardwareSettings, *, engine: Engine | None = None, on_cpu: bool = False) -> PreTrainedModel:
    """Load a trained reward model; a head that is missing or of another shape is refused, never drawn anew."""
    model = load_weights("SEQ_CLS", path, hardware, engine=engine, on_cpu=on_cpu)
    model.calibration = read_calibration(path)
    return model


def open_reward_model(path: str, precision: str) -> Any:
    """Open a reward model to be asked, on a GPU where there is one."""
    hardware = HardwareSettings.model_validate({"precision": precision})
    prepare_gpu(hardware)
    model: Any = load_reward_model(path, hardware)
    return model.eval()


def load_reward_adapter(policy: PreTrainedModel, path: str) -> Any:
    """Open a reward model that is an adapter on a policy, around the policy's own weights."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(put_head_on(policy), path)
    find_model(model).calibration = read_calibration(path)
    return model


def put_head_on(policy: PreTrainedModel) -> Any:
    """Make a reward model around a policy's transformer: the tensors are the policy's own, the scalar head is zero."""
    twin = share_weights(policy)
    transformer = twin.base_model
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device("meta"):  # a transformer of its own would be thrown away
        model: Any = find_classifier(config)(config).float()
    setattr(model, model.base_model_prefix, transformer)
    head = model.get_submodule(HEAD)
    weight = torch.nn.Parameter(torch.zeros(head.weight.shape, device=policy.device))
    setattr(model, HEAD, Float32Head(weight))
    model.config = transformer.config  # one config: whoever changes the attention changes both
    model.config.num_labels = 1
    model.published_settings, model.ways = twin.published_settings, twin.ways
    return model.eval()


def compute_scores(reward_model: Any, row: PackedRow) -> torch.Tensor:
    """Score each document at its last token, in float32, shape D."""
    return find_model(reward_model).calibration.apply(compute_states(reward_model, row)[1])


def compute_states(reward_model: Any, row: PackedRow) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the last hidden state of each document at its last token, [D, hidden size], and the logit that the head makes of it, D."""
    inner = find_model(reward_model)
    with autocast(inner.base_model, row.ids_N.device):
        hidden_DH = compute_hidden_states(inner.base_model, row, row.lasts_D)
        return hidden_DH, inner.get_submodule(HEAD)(hidden_DH)[:, 0]


def find_calibration(model: Any) -> Calibration | None:
    """Get a reward model's calibration; None of a policy."""
    return getattr(find_model(model), "calibration", None)
