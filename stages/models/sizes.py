"""How many bytes a model, what learns of it and its tokenizer take on the disk, known before they are written."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from stages.internals import count_elements
from stages.models.adapters import find_model, is_adapter
from stages.models.special_tokens import has_grown

_RECORD = 300  # of a tensor in torch's files, beside its numbers: a header, padding, an entry in the table at the end
_HEADER = 160  # of a tensor in safetensors' files: its name, shape and place
_BLOCK = 4096  # in which file systems hand out room
_CONFIGS = 4 * _BLOCK  # config.json, generation_config.json, adapter_config.json, score.json


def measure_published(model: Any, tokenizer: int, *, merge: bool) -> int:
    """Say what `stages.models.save.save_model` writes.

    Args:
        model: In training.
        tokenizer: Bytes of its tokenizer.
        merge: Whether an adapter is merged as well.
    """
    merged = 0
    if merge and is_adapter(model):
        base = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
        merged = sum(4 * count_elements(parameter) + _HEADER for parameter in _once(base)) + tokenizer + _CONFIGS
    return measure_weights(model) + tokenizer + _CONFIGS + merged


def measure_weights(model: Any) -> int:
    """Say what `save_pretrained` writes of weights: all of a model, or those of an adapter that learn."""
    if is_adapter(model):
        tensors = [parameter for parameter in model.parameters() if parameter.requires_grad]
        base = find_model(model)
        if has_grown(base):  # peft then writes the embeddings too
            tensors += [layer.weight for layer in (base.get_input_embeddings(), base.get_output_embeddings()) if layer is not None]
    else:
        tensors = list(model.state_dict(keep_vars=True).values())
    return sum(count_elements(tensor) * tensor.element_size() + _HEADER for tensor in _once(tensors))


def measure_trained(module: torch.nn.Module, copies: int) -> int:
    """Say what torch writes of copies of all that learns in a module: of the weights themselves, an average, the optimizer's moments."""
    trained = _once(parameter for parameter in module.parameters() if parameter.requires_grad)
    return sum(copies * count_elements(tensor) * tensor.element_size() + (copies + 1) * _RECORD for tensor in trained)


def measure_tokenizer(tokenizer: Any, near: Path) -> int:
    """Say what a tokenizer takes, by writing it to a directory beside where it will lie."""
    near.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sizes-", dir=near) as directory:
        tokenizer.save_pretrained(directory)
        return sum(-(-path.stat().st_size // _BLOCK) * _BLOCK for path in Path(directory).rglob("*") if path.is_file())


def _once(tensors: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    """Leave out what is there twice: tied weights are written once."""
    return {id(tensor): tensor for tensor in tensors}.values()
