"""Load a policy, from a base model or an SFT model."""

from transformers import GenerationConfig, PreTrainedModel

from stages.blocks import HardwareSettings
from stages.models.weights import load_weights
from stages.process.engine import Engine


def load_policy(
    path: str, hardware: HardwareSettings, revision: str | None = None, *, engine: Engine | None = None, on_cpu: bool = False
) -> PreTrainedModel:
    """Load a causal language model in float32, without dropout and with a neutral generation config.

    Args:
        path: a directory, or a hub id.
        hardware: how its attention is computed.
        revision: of a model from the hub.
        engine: may share weights out as they are loaded, see `stages.models.partition`; of all loaders.
        on_cpu: leave them there, whatever the stage computes on; of all loaders.
    """
    model = load_weights("CAUSAL_LM", path, hardware, engine=engine, revision=revision, on_cpu=on_cpu)
    # A base model's repetition penalty, top-k or temperature must never leak into rollouts or evaluations.
    config = model.config.get_text_config()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model
