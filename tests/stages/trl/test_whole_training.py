"""Whole trainings of SFT and reward model are those of loops in float64 that were written from the papers alone.

Every step takes all records, so that their order says nothing; the loops know no padding, packing, micro-batches or shared prompts.
"""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from data.tokens import EncodedComparison, EncodedPair
from stages.models.policy import load_policy
from stages.models.reward_model import init_reward_model
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.context import StageContext
from stages.settings import RMSettings, SFTSettings
from stages.trl.rm import make_ranking_trainer
from stages.trl.sft import make_sft_trainer
from tests.stages.ppo.whole_iterations_driver import AdamW

STEPS = 4
# An epsilon above rounding: Adam would make a whole step of the rounding of a gradient that is none.
TRAINING = {"epochs": STEPS, "batch_size": 8, "learning_rate": 2e-3, "adam_epsilon": 1e-4, "max_grad_norm": 0.5, "log_every": 1}
SCHEDULE = {"warmup_steps": 1, "min_lr_ratio": 0.1}


@pytest.fixture
def context(make_stage, plain_hardware):
    spec = make_stage("sft", hardware=plain_hardware.model_copy(update={"attention": "auto"})).spec
    spec.checkpoint_dir.mkdir(exist_ok=True)
    return StageContext(spec)


def draw(length, seed):
    return torch.randint(4, 800, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def learning_rate(step, schedule):
    """Linear warm-up from 0, then down to a tenth."""
    if step < 1:
        return 0.0
    done = (step - 1) / (STEPS - 1)
    left = (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1 - done
    return TRAINING["learning_rate"] * (0.1 + 0.9 * left)


def train_by_loops(model, settings, compute_loss):
    """[(loss, norm of its gradient before clipping)] of each step."""
    adam, found = AdamW(model, settings), []
    for step in range(STEPS):
        loss = compute_loss(model)
        loss.backward()
        found.append((loss.item(), adam.step(learning_rate(step, settings.lr_schedule))))
    return found


def require_alike(trainer, model, found):
    trainer.args.save_strategy = "no"
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == len(found) == STEPS
    for row, (loss, norm) in zip(rows, found, strict=True):
        assert (row["loss"], row["grad_norm"]) == pytest.approx((loss, norm), rel=2e-5)
    expected = dict(model.named_parameters())
    for name, weight in trainer.model.named_parameters():
        assert (weight.double() - expected[name]).abs().max() < 2e-6, name


@pytest.mark.parametrize("changes", [{"micro_batch_size": 4}, {"micro_batch_size": 1, "packing": True, "lr_schedule": "linear"}])
def test_sft_is_the_mean_over_all_response_tokens_of_a_batch(context, base_model_dir, changes):
    pairs = [EncodedPair(draw(3 + index, index), draw(1 + 5 * index, 10 + index)) for index in range(5)]
    settings = SFTSettings(**TRAINING | SCHEDULE | changes)

    def compute_loss(model):
        losses = []
        for pair in pairs:
            ids = pair.prompt_ids + pair.response_ids
            logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            losses += [-logprobs[place - 1, ids[place]] for place in range(len(pair.prompt_ids), len(ids))]
        return sum(losses) / len(losses)

    model = AutoModelForCausalLM.from_pretrained(base_model_dir, dtype=torch.float64, attn_implementation="eager")
    found = train_by_loops(model, settings, compute_loss)
    policy, tokenizer = load_policy(str(base_model_dir), context.spec.hardware), load_tokenizer(str(base_model_dir))
    require_alike(make_sft_trainer(context, settings, policy, tokenizer, pairs, []), model, found)


def test_the_reward_model_is_the_mean_over_prompts_of_the_mean_over_pairs_with_ties_and_margins(context, base_model_dir):
    rankings = [((1, 2), (7, 2)), ((2, 1, 3), (None, 6, 1)), ((1, 1, 2, 3), (5, 5, 5, 4)), ((4, 3, 2, 1), (1, 2, 3, 4)), ((1, 2, 2), None)]
    comparisons = [
        EncodedComparison(
            draw(4 + index, index),
            [draw(2 + 3 * index + place, 10 * (index + 1) + place) for place in range(len(ranks))],
            ranks,
            "",
            () if grades is None else tuple(math.nan if grade is None else float(grade) for grade in grades),
        )
        for index, (ranks, grades) in enumerate(rankings)
    ]
    settings = RMSettings(**TRAINING | SCHEDULE, micro_batch_size=2, margin="grade", margin_scale=3.0)
    tokenizer = load_tokenizer(str(base_model_dir))
    reward_model = init_reward_model(str(base_model_dir), context.spec.hardware, seed=1)
    align_special_tokens(reward_model, tokenizer)

    def compute_loss(model):
        losses = []
        for item, (ranks, grades) in zip(comparisons, rankings, strict=True):
            states = [
                model.model(input_ids=torch.tensor([item.prompt_ids + response])).last_hidden_state[0, -1] for response in item.responses
            ]
            scores = [model.score(state)[0] for state in states]
            pairs = []
            for better, better_rank in enumerate(ranks):
                for worse, worse_rank in enumerate(ranks):
                    if better_rank < worse_rank:
                        known = grades is not None and grades[better] is not None and grades[worse] is not None
                        margin = 3.0 * max(0, grades[better] - grades[worse]) / 6 if known else 0.0
                        pairs.append(F.softplus(scores[worse] - scores[better] + margin))
            losses.append(sum(pairs) / len(pairs))
        return sum(losses) / len(losses)

    model = AutoModelForSequenceClassification.from_pretrained(
        base_model_dir, dtype=torch.float64, attn_implementation="eager", num_labels=1
    )
    with torch.no_grad():
        model.score.weight.copy_(reward_model.score.weight)
    found = train_by_loops(model, settings, compute_loss)
    require_alike(make_ranking_trainer(context, settings, reward_model, tokenizer, comparisons, []), model, found)
