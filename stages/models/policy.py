"""Load a policy, from a base model or an SFT model."""

from typing import Any

from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from stages.models.weights import load_weights
from stages.settings import HardwareSettings


def load_policy(
    path: str, hardware: HardwareSettings, revision: str | None = None, *, zero3: dict[str, Any] | None = None
) -> PreTrainedModel:
    """Load a causal language model in float32, without dropout and with a neutral generation config.

    Args:
        path: a directory, or a hub id.
        hardware: how its attention is computed.
        revision: of a model from the hub.
        zero3: DeepSpeed's configuration where weights are shared out as they are loaded, see `stages.models.partition`; of all loaders.
    """
    model = load_weights(AutoModelForCausalLM, path, hardware, zero3=zero3, revision=revision)
    # A base model's repetition penalty, top-k or temperature must never leak into rollouts or evaluations.
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    return model
