"""Whole weights after training in pieces, by TRL's hooks on DeepSpeed's engine (ZeRO stage 3)."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from trl.models.utils import add_hooks, remove_hooks
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from stages.internals import unset_hf_deepspeed_config
from stages.models.adapters import is_adapter
from stages.models.compiling import eagerly
from stages.models.partition import gathered_in_forward


@contextmanager
def whole_model(trainer: SFTTrainer | RewardTrainer) -> Generator[Any]:
    """Give the trained model without what wraps it, to be computed with by all ranks alike, and saved. To be entered by all ranks.

    Every rank holds all of its weights; at ZeRO stage 3 under an adapter those that learn, and the others one module after the other.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage < 3:
        yield model
        return
    unset_hf_deepspeed_config()  # or transformers would open the next model in pieces, on all ranks at once
    with gather_weights(trainer.model_wrapped, frozen=not is_adapter(model)), gathered_in_forward(model), eagerly(model):
        yield model


@contextmanager
def gather_weights(engine: Any, *, frozen: bool = True) -> Generator[None]:
    """Inside, every rank holds all weights of a DeepSpeed engine at ZeRO stage 3, and its module can be used alone.

    Args:
        engine: the DeepSpeed engine.
        frozen: gather weights that do not learn too; without them the module cannot be run.
    """
    import deepspeed

    parameters = [parameter for parameter in engine.module.parameters() if frozen or parameter.requires_grad]
    with deepspeed.zero.GatheredParameters(parameters):
        remove_hooks(engine)  # they would give each layer's weights away after its forward
        try:
            yield
        finally:
            add_hooks(engine)
