"""A policy's weights as files for a vLLM server: where they are written, how large they are, and in which precision."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.models.adapters import find_backbone, is_adapter
from stages.models.precision import is_bfloat16


def find_room(directories: Sequence[Path], num_bytes: int) -> Path:
    """Find the first directory with room for so many bytes, and a tenth more; the last where none has."""
    return next((path for path in directories if shutil.disk_usage(path).free >= 1.1 * num_bytes), directories[-1])


def measure_handed_over(policy: Any) -> int:
    """Count the bytes of what the server is given."""
    if is_adapter(policy):
        return sum(weight.nbytes for weight in policy.parameters() if weight.requires_grad)
    narrows = is_bfloat16(find_backbone(policy))
    return sum(2 * tensor.numel() if _narrows(tensor, narrows) else tensor.nbytes for tensor in policy.state_dict().values())


def _narrows(tensor: Tensor, computes_in_bfloat16: bool) -> bool:
    """Whether the server will hold a tensor in bfloat16: products are in that precision there too; vectors it may keep wider."""
    return computes_in_bfloat16 and tensor.dtype == torch.float32 and tensor.dim() > 1


def save_weights(policy: Any, directory: Path) -> None:
    """Write all weights in the precision of the products, with a head of its own even where it is tied to the embeddings."""
    narrows = is_bfloat16(find_backbone(policy))
    # Copies: of tensors that share their memory, only one would be written.
    weights: dict[str, Tensor] = {}
    for name, tensor in policy.state_dict().items():
        weights[name] = tensor.detach().to(torch.bfloat16 if _narrows(tensor, narrows) else tensor.dtype).cpu().clone()
    policy.save_pretrained(directory, state_dict=weights)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"tie_word_embeddings": False}), encoding="utf-8")
