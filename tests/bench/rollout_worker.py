"""One batch of sampled responses per "go": our generator, or transformers' `generate` on prompts padded on the left."""

import itertools
import json
import sys
from typing import Any

import torch
from transformers import GenerationConfig

from stages.models import precision
from stages.responses.generation import generate_responses
from tests.bench.our_models import make_hardware, open_policy
from tests.bench.protocol import Bench, Figures, Instant
from tests.bench.workload import EOS, PAD, PPOWork, make_policy, make_prompts


def sample_ours(policy: Any, work: PPOWork, prompts: list[list[int]], seed: int) -> int:
    """Sample with the project's generator, as PPO does, and count the response tokens."""
    rows = {"max_new_tokens": work.max_new_tokens, "max_rows": len(prompts)}
    responses = generate_responses(policy, prompts, **rows, stop_token_ids={EOS}, seed=seed)
    return sum(len(response.ids) for response in responses)


@torch.no_grad()
def sample_transformers(policy: Any, work: PPOWork, prompts: list[list[int]], seed: int) -> int:
    """Sample with `model.generate` and count the response tokens."""
    torch.manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    config = GenerationConfig(
        max_new_tokens=work.max_new_tokens, do_sample=True, top_k=0, top_p=1.0, eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None
    )
    with precision.autocast(policy.base_model, ids.device):
        sequences = policy.generate(input_ids=ids, attention_mask=(ids != PAD).long(), generation_config=config)
    ended = sequences[:, width:] == EOS
    return int((ended.cumsum(dim=1) - ended.long() == 0).sum())


def main() -> None:
    """Serve until the bench closes the line."""
    bench = Bench()
    given = json.loads(sys.argv[1])
    work, hardware = PPOWork(**given["ppo"]), make_hardware(given["precision"])
    prompts, turns = make_prompts(work), itertools.count()
    if given["engine"] == "ours":
        sample, policy = sample_ours, open_policy(work.size, work.hazard, hardware).eval()
    else:
        sample, policy = sample_transformers, make_policy(work.size, work.hazard).eval()
        precision.set_precision(policy, hardware)

    def step() -> Figures:
        start = Instant.now()
        response_tokens = sample(policy, work, prompts, next(turns))
        elapsed = start.until(Instant.now())
        return {"phases": {"total": elapsed}, "tokens": {"prompt": sum(map(len, prompts)), "response": response_tokens}}

    bench.serve(step)


if __name__ == "__main__":
    main()
