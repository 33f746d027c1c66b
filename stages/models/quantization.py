"""QLoRA (Dettmers et al. 2023): the frozen linear layers of a LoRA run are held in 4 bits, by bitsandbytes.

weights, in blocks of 64 -> the nearest of NF4's 16 values each, times the block's largest; that one in 8 bits (double quantization)

4 bits + 8 bits / 64 + 32 bits / (64 · 256) = 0.516 bytes a weight. A product turns its weight back into the compute precision, for as
long as it lasts; the backward pass does so again. Embeddings, head, norms and adapters stay as they are without it.
"""

from typing import Any

import torch
from torch import nn

from stages.blocks import HardwareSettings
from stages.process.errors import StageError
from stages.process.gpu import find_device, finds_gpu
from stages.spec import EXIT_USAGE


def quantize_layers(model: Any, hardware: HardwareSettings) -> Any:
    """Hold a model's linear layers, all but its head, in NF4; to be done before there are adapters in it, which are linear layers too.

    What is in 4 bits already stays as it is.

    Args:
        model: a model of transformers with float32 weights; changed in place.
        hardware: the compute precision, and where the weights are converted.

    Raises:
        StageError: the model has no linear layer of torch's; exit code 2.
    """
    import bitsandbytes

    bnb: Any = bitsandbytes.nn
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not head:
                setattr(parent, name, _quantize(layer, hardware, bnb))
    if not any(isinstance(module, bnb.Linear4bit) for module in model.modules()):
        raise StageError(
            f"lora.quantize: {type(model).__name__} has no linear layer that could be held in 4 bits; set lora.quantize: null", EXIT_USAGE
        )
    return model


def _quantize(layer: nn.Linear, hardware: HardwareSettings, bnb: Any) -> nn.Linear:
    dtype = torch.bfloat16 if hardware.computes_in_bfloat16 else torch.float32
    has_bias = layer.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
    quantized = bnb.Linear4bit(layer.in_features, layer.out_features, has_bias, compute_dtype=dtype, quant_type="nf4", device="meta")
    # On a GPU seconds, on a CPU minutes for a large model. It comes back: later the model is moved as a whole.
    place = layer.weight.device
    fast_place = find_device(hardware) if finds_gpu(hardware) else place
    quantized.weight = bnb.Params4bit(layer.weight.data, quant_type="nf4", compress_statistics=True).to(fast_place).to(place)
    quantized.weight.quant_state.dtype = dtype  # into which the backward pass turns it: no float32 copy on the way
    if has_bias:
        quantized.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    # Otherwise evaluation on a CPU with AVX512-BF16 would repack the weights in place and round their scales to bfloat16: updates would
    # go on with another model than rollouts began with.
    quantized.support_avx512bf16_for_cpu = False
    return quantized.train(layer.training)
