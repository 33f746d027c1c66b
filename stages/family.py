"""What all three stages can do with a base model, known from its configuration alone: before weights are read and anything trains.

config.json -> miniature -> how it computes, how it is decoded, what its reward model is, where LoRA goes; or a refusal in one line
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, PretrainedConfig

from stages.blocks import HardwareSettings, LoRASettings
from stages.models.adapters import apply_lora, refuse_head_target, require_target_below_head
from stages.models.attention import PACKED
from stages.models.classifier import find_classifier, is_ours
from stages.models.miniature import make_skeleton
from stages.models.probe import Ways, attempt, find_ways
from stages.models.weights import find_base, open_pretrained
from stages.process.errors import StageError
from stages.responses.generation import Decoding, decide_decoding
from stages.spec import EXIT_USAGE


@dataclass(frozen=True)
class Family:
    """How a base model goes through the stages."""

    ways: Ways
    decoding: Decoding
    has_classifier: bool  # of transformers' own; else the reward model is ours, around the backbone

    @property
    def rows(self) -> Literal["packed", "padded"]:
        """How documents of unequal length are computed with `hardware.attention: auto`."""
        return "packed" if self.ways.packed else "padded"


def check_base(path: str, stage: str, lora: LoRASettings | None, revision: str | None = None) -> None:
    """See at the start of a stage that all stages can go on from its base model, and that its own adapter can be put on it.

    Raises:
        StageError: see `find_family` and `check_lora`; the base is itself an adapter where another one shall stand on it.
    """
    find_family(path, revision)
    check_lora(path, {stage: lora}, revision)


def find_family(path: str, revision: str | None = None) -> Family:
    """Find what the stages can do with a base model.

    Args:
        path: a directory, or a hub id.
        revision: of a model from the hub.

    Raises:
        StageError: its family cannot go through all stages; exit code 2. Its configuration cannot be opened; exit code 4.
    """
    config = _open_config(path, revision)
    _refuse_quantized(path, config)
    return describe_family(config)


def _refuse_quantized(path: str, config: PretrainedConfig) -> None:
    """Refuse weights that lie on the disk in few bits: they cannot learn, nor take a merged adapter."""
    block: Any = getattr(config, "quantization_config", None)
    if block:
        method = block.get("quant_method", "some method") if isinstance(block, dict) else getattr(block, "quant_method", "some method")
        raise StageError(
            f"base_model: found weights that are quantized ({getattr(method, 'value', method)}) in {path}; needed ordinary ones; take the "
            "model that they were made of, and set lora.quantize: nf4 in the stages where it shall be held in 4 bits",
            EXIT_USAGE,
        )


def describe_family(config: PretrainedConfig) -> Family:
    """The same for a configuration."""
    ways = find_ways(config)
    decoding = decide_decoding(config, PACKED if ways.packed else ways.attention)
    classifier = attempt(config, "whose reward model cannot be built", lambda: find_classifier(config))
    if is_ours(classifier):  # transformers' own was built to see that its head and its backbone fit
        attempt(config, "whose reward model cannot be built", lambda: _build_empty_classifier(config))
    return Family(ways, decoding, not is_ours(classifier))


def _build_empty_classifier(config: PretrainedConfig) -> Any:
    small = make_skeleton(config).config
    small.num_labels = 1
    with torch.device("meta"):
        return find_classifier(config)(small)


def check_lora(path: str, adapters: Mapping[str, LoRASettings | None], revision: str | None = None) -> None:
    """See that adapters can be put on a base model.

    Args:
        path: a directory, or a hub id.
        adapters: the `lora` block of each stage, by the stage's name.
        revision: of a model from the hub.

    Raises:
        StageError: with the stage's name; exit code 2.
    """
    config = _open_config(path, revision)
    for stage, lora in adapters.items():
        if lora is None:
            continue
        try:
            # What peft and transformers warn of is refused, or no matter of this recipe's.
            with (
                warnings.catch_warnings(action="ignore"),
                torch.random.fork_rng(devices=[]),
            ):  # should anything be drawn; the stage's own adapter must be what it would be
                adapted = _try_adapter(config, lora, "SEQ_CLS" if stage == "rm" else "CAUSAL_LM")
                if stage == "ppo":
                    require_target_below_head(adapted)  # for the critic
            if stage in ("pretrain", "sft"):
                refuse_head_target(adapted)
        except StageError as error:
            raise StageError(f"{stage}.{error}", error.exit_code) from error


def _try_adapter(config: PretrainedConfig, lora: LoRASettings, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> Any:
    model = _build_empty_classifier(config) if task == "SEQ_CLS" else make_skeleton(config)
    model.ways = find_ways(config)
    with torch.device("meta"):
        return apply_lora(
            model, lora.model_copy(update={"quantize": None}), task, HardwareSettings.model_validate({"precision": "float32"})
        )


def _open_config(path: str, revision: str | None) -> PretrainedConfig:
    path, revision = find_base(path, revision)
    return open_pretrained(AutoConfig, path, revision=revision)
