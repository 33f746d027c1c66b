"""One optimizer step of the reward model per "go", on one prompt with K ranked answers: ours, or TRL's trainer on the C(K,2) pairs.

TRL's runs twice: in micro-batches of at most 8 pairs, its default, and with all pairs in one forward.
"""

import itertools
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from data.tokens import EncodedComparison
from stages.blocks import TokenSettings
from stages.settings import RMSettings
from stages.trl.rm import make_ranking_trainer
from tests.bench.hf_meter import Meter
from tests.bench.our_models import open_reward_model
from tests.bench.protocol import Bench
from tests.bench.stage_context import make_context
from tests.bench.workload import draw_ids, make_reward_model, make_tokenizer

_PROMPTS = 32  # an epoch; the steps come from as many of them as are asked for
_LONGEST_MICRO_BATCH = {"trl": 8, "trl at once": 10**9}  # pairs per forward; 8 is TRL's default per_device_train_batch_size


def make_comparisons(size: str, answers: int, prompt_tokens: int, answer_tokens: int) -> list[EncodedComparison]:
    """Draw prompts with K answers each, ranked 1 to K."""
    draw = random.Random(0)
    ranks = tuple(range(1, answers + 1))
    return [
        EncodedComparison(draw_ids(draw, prompt_tokens, size), [draw_ids(draw, answer_tokens, size) for _ in ranks], ranks, "")
        for _ in range(_PROMPTS)
    ]


def build_ours(given: dict[str, Any], comparisons: list[EncodedComparison], directory: Path) -> RewardTrainer:
    """Build our trainer: one comparison per optimizer step."""
    settings = RMSettings(batch_size=1, micro_batch_size=1, epochs=10_000, save_every=10**9, log_every=10**9)
    tokens = TokenSettings(max_prompt_tokens=given["prompt_tokens"], max_response_tokens=given["answer_tokens"])
    context = make_context("rm", settings, tokens, given["precision"], directory)
    model = open_reward_model(given["size"], 1, context.spec.hardware)
    return make_ranking_trainer(context, settings, model, make_tokenizer(given["size"]), comparisons, [])


def build_trl(given: dict[str, Any], comparisons: list[EncodedComparison], directory: Path) -> RewardTrainer:
    """Build TRL's trainer: all pairs of one comparison per optimizer step, in as large micro-batches as divide them."""
    pairs = [
        {"chosen_ids": item.prompt_ids + item.responses[better], "rejected_ids": item.prompt_ids + item.responses[worse]}
        for item in comparisons
        for better, worse in itertools.combinations(range(given["answers"]), 2)
    ]
    per_step = len(pairs) // len(comparisons)
    micro_batch = max(size for size in range(1, min(_LONGEST_MICRO_BATCH[given["engine"]], per_step) + 1) if per_step % size == 0)
    config = RewardConfig(
        output_dir=str(directory),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=per_step // micro_batch,
        num_train_epochs=10_000,
        max_length=None,
        bf16=given["precision"] == "bfloat16",
        gradient_checkpointing=False,  # as ours: its default trades time for memory
        use_cpu=True,
        save_strategy="no",
        logging_steps=10**9,
        report_to=[],
        disable_tqdm=True,
    )
    model = make_reward_model(given["size"], seed=1)
    return RewardTrainer(model=model, args=config, train_dataset=Dataset.from_list(pairs), processing_class=make_tokenizer(given["size"]))


def main() -> None:
    """Serve until the bench closes the line."""
    bench = Bench()
    given = json.loads(sys.argv[1])
    comparisons = make_comparisons(given["size"], given["answers"], given["prompt_tokens"], given["answer_tokens"])
    build = build_ours if given["engine"] == "ours" else build_trl
    with tempfile.TemporaryDirectory() as directory:
        trainer = build(given, comparisons, Path(directory))
        trainer.add_callback(Meter(bench, "step", lambda: {}))
        trainer.train()


if __name__ == "__main__":
    main()
