"""How far a policy is from another one at the tokens that it said: pure functions.

Axes: B responses, R response tokens. `response_mask_BR` is True at a real token.
"""

import torch
from torch import Tensor


def compute_log_ratios(logprobs_BR: Tensor, old_logprobs_BR: Tensor, response_mask_BR: Tensor) -> Tensor:
    """Compute log(π / π_old) of each token; 0 outside the mask, so that a ratio there is 1."""
    return torch.where(response_mask_BR, logprobs_BR - old_logprobs_BR, 0.0)


def estimate_kl_k1(logprobs_BR: Tensor, ref_logprobs_BR: Tensor, response_mask_BR: Tensor) -> Tensor:
    """Estimate KL(π ‖ π_ref) at each token by log π − log π_ref: unbiased, can be negative (Schulman 2020, k1)."""
    return compute_log_ratios(logprobs_BR, ref_logprobs_BR, response_mask_BR)


def estimate_kl_k3(logprobs_BR: Tensor, ref_logprobs_BR: Tensor, response_mask_BR: Tensor) -> Tensor:
    """Estimate KL(π ‖ π_ref) at each token by exp(−x) − 1 + x, x = log π − log π_ref: never negative (Schulman 2020, k3)."""
    log_ratio_BR = compute_log_ratios(logprobs_BR, ref_logprobs_BR, response_mask_BR)
    return torch.expm1(-log_ratio_BR) + log_ratio_BR
