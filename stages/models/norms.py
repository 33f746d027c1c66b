"""RMSNorm (Zhang and Sennrich 2019) with the gradient written out: y = w · x / √(mean(x²) + ε).

Left to autograd, the norms of a small model take a tenth of a training step on a CPU: a dozen passes over float32 activations, most
of which are kept for the backward pass. Here the backward pass is one fused kernel, and the input is all that is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from stages.models.partition import gathered


class RMSNorm(nn.Module):
    """Stands in for a transformers RMSNorm; its weight is the very parameter of the one that it replaces.

    Args:
        weight: [hidden size].
        eps: ε.
        feeds_linear_layers: return what autocast would turn the output into anyway: once, not in each layer that reads it.
    """

    def __init__(self, weight: nn.Parameter, eps: float, feeds_linear_layers: bool) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.feeds_linear_layers = feeds_linear_layers

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last axis; [..., hidden size] in, the same out."""
        device_type = hidden.device.type
        narrows = self.feeds_linear_layers and torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if narrows else torch.promote_types(hidden.dtype, self.weight.dtype)
        if device_type != "cpu":  # torch has a fused kernel there, which keeps what ours keeps: so a trace of it takes ours
            return F.rms_norm(hidden.float(), self.weight.shape, self.weight.float(), self.eps).to(dtype)
        return _RMSNorm.apply(hidden, self.weight, self.eps).to(dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def extra_repr(self) -> str:
        """Say the shape and ε, as transformers' does."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """With x̂ = x r and r = 1 / √(mean(x²) + ε): ∂x = r (w ∂y − x̂ mean(w ∂y x̂)) and ∂w = Σ ∂y x̂."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = norm.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        return (hidden * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, inverse = ctx.saved_tensors
        gradient, size = gradients[0].float(), hidden.shape[-1]
        # LayerNorm's backward, told that the mean is 0, computes this but for one term, of the derivative of the mean: put back.
        wanted = [True, ctx.needs_input_grad[1], False]
        to_hidden, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, hidden.float(), [size], torch.zeros_like(inverse), inverse, weight.float(), None, wanted
        )
        to_hidden.addcmul_(inverse, (gradient @ weight.float()).div_(size)[..., None])
        return to_hidden.to(hidden.dtype), to_weight if wanted[1] else None, None


def fuse_norms(model: nn.Module, agree: Callable[["RMSNorm", nn.Module], bool] | None = None) -> int:
    """Replace the RMSNorms of a model that compute what ours does; tried, not assumed: some families add 1 to the weight, or cast.

    Args:
        model: changed in place.
        agree: tries ours against one of the model's; None: by their weights as they are.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            eps = getattr(norm, "variance_epsilon", None)
            if isinstance(eps, float) and type(norm).__name__.endswith("RMSNorm") and isinstance(norm.weight, nn.Parameter):
                ours = RMSNorm(norm.weight, eps, _feeds_linear_layers(parent, name))
                with gathered([norm.weight]):
                    fits = (agree or compute_alike)(ours, norm)
                if fits:
                    setattr(parent, name, ours)
                    replaced += 1
    return replaced


def _feeds_linear_layers(parent: nn.Module, name: str) -> bool:
    """Whether a norm stands before the linear layers of a pre-norm layer, and nothing else reads it.

    Other norms feed the heads, rotary embeddings or the residual stream, which stay float32; and routers, beside experts, whose weights
    are one tensor of three axes: which experts a token goes to hangs by the last digits.
    """
    stands_before = hasattr(parent, "input_layernorm") and name in ("input_layernorm", "post_attention_layernorm")
    return stands_before and all(parameter.dim() < 3 for parameter in parent.parameters())


@torch.no_grad()
def compute_alike(ours: RMSNorm, norm: nn.Module) -> bool:
    """Whether both make the same of a few numbers."""
    hidden = torch.linspace(-2.0, 3.0, 2 * ours.weight.numel(), device=ours.weight.device).view(2, -1)
    expected = norm(hidden)
    return expected.dtype == torch.float32 and torch.allclose(ours(hidden), expected, atol=1e-5, rtol=1e-5)
