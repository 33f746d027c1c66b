"""One epoch of SFT per "go", over demonstrations of skewed lengths: padded by TRL to its batch, unpadded, or packed into rows."""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from trl.trainer.sft_trainer import SFTTrainer

from data.tokens import EncodedPair
from stages.blocks import TokenSettings
from stages.settings import SFTSettings
from stages.trl.sft import make_sft_trainer
from tests.bench.hf_meter import Meter
from tests.bench.our_models import make_hardware, open_policy
from tests.bench.protocol import Bench
from tests.bench.stage_context import make_context
from tests.bench.workload import EOS, draw_ids, make_tokenizer

_TOKENS = TokenSettings(max_prompt_tokens=64, max_response_tokens=192)
# About as many real tokens per optimizer step: 16 demonstrations of about 98 tokens, or 6 rows of 256.
_BATCH, _PACKED_BATCH = 16, 6


def make_demonstrations(size: str, count: int) -> list[EncodedPair]:
    """Draw demonstrations with many short answers and a few long ones (log-normal, median 32 tokens, at most 192)."""
    draw = random.Random(0)
    pairs: list[EncodedPair] = []
    for _ in range(count):
        answer_tokens = min(max(int(draw.lognormvariate(3.5, 0.9)), 2), _TOKENS.max_response_tokens)
        prompt_tokens = draw.randint(16, _TOKENS.max_prompt_tokens)
        pairs.append(EncodedPair(draw_ids(draw, prompt_tokens, size), [*draw_ids(draw, answer_tokens - 1, size), EOS]))
    return pairs


def build_trainer(given: dict[str, Any], demonstrations: list[EncodedPair], directory: Path) -> SFTTrainer:
    """Build the trainer of an SFT stage; with an attention of transformers' own it is TRL's, which pads."""
    packing = given["engine"] == "packed"
    batch_size = _PACKED_BATCH if packing else _BATCH
    settings = SFTSettings(
        packing=packing, batch_size=batch_size, micro_batch_size=batch_size, epochs=10_000, save_every=10**9, log_every=10**9
    )
    hardware = make_hardware(given["precision"], attention="sdpa" if given["engine"] == "padded" else "auto")
    context = make_context("sft", settings, _TOKENS, given["precision"], directory, hardware=hardware)
    policy = open_policy(given["size"], 0.025, context.spec.hardware)
    return make_sft_trainer(context, settings, policy, make_tokenizer(given["size"]), demonstrations, [])


def main() -> None:
    """Serve until the bench closes the line."""
    bench = Bench()
    given = json.loads(sys.argv[1])
    demonstrations = make_demonstrations(given["size"], given["demonstrations"])
    tokens = {"prompt": sum(len(pair.prompt_ids) for pair in demonstrations), "response": sum(len(p.response_ids) for p in demonstrations)}
    with tempfile.TemporaryDirectory() as directory:
        trainer = build_trainer(given, demonstrations, Path(directory))
        trainer.add_callback(Meter(bench, "epoch", lambda: {"tokens": tokens}))
        trainer.train()


if __name__ == "__main__":
    main()
