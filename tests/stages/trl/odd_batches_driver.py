"""Run by test_odd_batches.py on each rank: few records in odd batches -> weights and held-out figures of SFT's and RM's trainer.

odd_batches_driver.py SPEC.json BASE OUTPUT          the spec lends directories and hardware; rank 0 writes OUTPUT
"""

import sys
from pathlib import Path

import numpy as np
import torch

from data.tokens import EncodedComparison, EncodedPair
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.context import StageContext
from stages.process.runtime import start_process
from stages.settings import RMSettings, SFTSettings
from stages.spec import read_spec
from stages.trl.rm import make_ranking_trainer
from stages.trl.sft import make_sft_trainer

HELD_OUT = 3
# An epsilon above rounding: Adam would make a whole step of the rounding of a gradient that is none.
TRAINING = {"epochs": 2, "learning_rate": 1e-3, "adam_epsilon": 1e-4}
# By number of processes: (records, batch size), and the micro-batch sizes that it is tried with.
SIZES = {
    1: {(2, 24): [1], (5, 24): [1, 2, 4, 8], (7, 24): [1, 4], (7, 6): [2]},
    2: {(5, 24): [4], (7, 24): [2], (7, 6): [1]},
    3: {(2, 24): [1], (7, 6): [1]},
}
# Our row without padding, TRL's padded batch, and rows of several demonstrations in either.
SFT_FORMS = {
    "sft": {},
    "sft-padded": {"attention": "eager"},
    "sft-packed": {"packing": True},
    "sft-packed-padded": {"attention": "eager", "packing": True},
}


def draw_ids(generator, length):
    return torch.randint(4, 800, (length,), generator=generator).tolist()


def draw_demonstrations(seed, count):
    """Of very unequal length: a mean over the wrong tokens is far off."""
    generator = torch.Generator().manual_seed(seed)
    return [EncodedPair(draw_ids(generator, 3 + index), draw_ids(generator, 2 + 5 * index)) for index in range(count)]


def draw_comparisons(seed, count):
    generator = torch.Generator().manual_seed(seed)
    comparisons = []
    for index in range(count):
        answers = 2 + index % 3
        responses = [draw_ids(generator, 2 + index + k) for k in range(answers)]
        comparisons.append(EncodedComparison(draw_ids(generator, 4), responses, tuple(range(1, answers + 1)), ""))
    return comparisons


def run(context, base, tokenizer, stage, records, sizes):
    """Train two epochs of one stage's trainer; its weights, the held-out figures that it logged, and its steps."""
    if stage == "rm":
        settings = RMSettings(**TRAINING, **sizes)
        model = init_reward_model(base, context.spec.hardware, 1)
        align_special_tokens(model, tokenizer)
        trainer = make_ranking_trainer(context, settings, model, tokenizer, draw_comparisons(0, records), draw_comparisons(1, HELD_OUT))
    else:
        form = SFT_FORMS[stage]
        settings = SFTSettings(packing=form.get("packing", False), **TRAINING, **sizes)
        hardware = context.spec.hardware.model_copy(update={"attention": form.get("attention", "auto")})
        demonstrations = draw_demonstrations(0, records), draw_demonstrations(1, HELD_OUT)
        trainer = make_sft_trainer(context, settings, load_policy(base, hardware), tokenizer, *demonstrations)
    trainer.args.save_strategy = "no"
    trainer.train()
    figures = [
        {key: row[key] for key in ("eval_loss", "eval_accuracy") if key in row} for row in trainer.state.log_history if "eval_loss" in row
    ]
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}, figures, trainer.state.global_step


def look_at_shares(context, base, tokenizer, accumulation_steps):
    """By stage: tokens of each rank in each step of an epoch, and how often the ranks meet to add numbers up in two steps of training."""
    found = {}
    for stage in ("sft", "rm"):
        settings = {"epochs": 1, "batch_size": 16, "micro_batch_size": 8 // accumulation_steps, "log_every": 100}
        if stage == "sft":
            policy, records = load_policy(base, context.spec.hardware), draw_demonstrations(0, 32)
            trainer = make_sft_trainer(context, SFTSettings(**settings), policy, tokenizer, records, [])
            trainer.sizes = np.array([len(pair.prompt_ids) + len(pair.response_ids) for pair in records])  # as on GPUs
        else:
            model = init_reward_model(base, context.spec.hardware, 1)
            align_special_tokens(model, tokenizer)
            records = draw_comparisons(0, 32)
            trainer = make_ranking_trainer(context, RMSettings(**settings), model, tokenizer, records, [])
            trainer.sizes = np.array([len(item.prompt_ids) + sum(map(len, item.responses)) for item in records])
        trainer.args.save_strategy = "no"
        tokens_M = torch.tensor([int(batch["lengths"].sum()) for batch in trainer.get_train_dataloader()])
        tokens_SW = trainer.accelerator.gather(tokens_M).view(context.world_size, -1, accumulation_steps).sum(dim=2).T
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            trainer.train()
        found[stage] = (tokens_SW.tolist(), sum(event.name == "gloo:all_reduce" for event in profile.events()))
    return found


def main(spec_path, base, output):
    spec = read_spec(Path(spec_path))
    context = StageContext(spec)
    start_process(context)
    tokenizer, results = load_tokenizer(base), {}
    for (records, batch_size), micro_batch_sizes in SIZES[context.world_size].items():
        for stage in ("rm", *SFT_FORMS):
            if stage.startswith("sft-"):
                micro_batch_sizes = micro_batch_sizes[-1:] if records == 5 else []
            for micro_batch_size in micro_batch_sizes:
                sizes = {"batch_size": batch_size, "micro_batch_size": micro_batch_size}
                results[stage, records, batch_size, micro_batch_size] = run(context, base, tokenizer, stage, records, sizes)
    shares = {steps: look_at_shares(context, base, tokenizer, steps) for steps in (1, 4)} if context.world_size == 2 else {}
    if context.is_main:
        torch.save((results, shares), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
