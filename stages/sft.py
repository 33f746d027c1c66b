"""Stage 1, supervised fine-tuning: base model + demonstrations -> policy.

demonstrations -> token ids -> TRL's SFTTrainer (loss on the response) -> model/, held-out loss, sampled answers
"""

import math
from typing import Any

import torch
from torch.nn import functional as F

from data.schema import Demonstration, Prompt
from data.tokens import EncodedPair, encode_demonstrations, encode_prompts
from stages.models.adapters import apply_lora, find_backbone, require_adapter_base
from stages.models.compiling import compile_layers
from stages.models.forward import note_padding
from stages.models.handoff import read_facts
from stages.models.policy import load_policy
from stages.models.precision import autocast
from stages.models.save import save_model
from stages.models.special_tokens import grow_embeddings
from stages.models.tokenizer import align_special_tokens, settle_tokenizer
from stages.process.context import StageContext, describe_machine
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.process.runtime import run_stage
from stages.responses.judging import answer_prompts, judge_answers, load_judge, report_answers, write_samples
from stages.settings import SFTSettings
from stages.spec import SAMPLES_FILE, StageResult
from stages.splits import load_splits, note_repeated_openings
from stages.trl.gathering import whole_model
from stages.trl.sft import IGNORED_LABEL, make_sft_trainer
from stages.trl.training import train

_EVAL_BATCH = 32
_MAX_EVAL_LOGITS = 2**28  # 1 GB in float32; 32 demonstrations of 1536 tokens and 128,256 words of vocabulary would be 25


def main(context: StageContext) -> StageResult:
    """Fine-tune the base model on demonstrations."""
    spec = context.spec
    settings = spec.settings
    assert isinstance(settings, SFTSettings)
    judge = load_judge(spec.judge)
    tokenizer: Any
    tokenizer, taken = settle_tokenizer(spec.models["base"], spec.tokens, spec.revision)
    context.note(taken)
    records, held_out_records = load_splits(spec, "demonstrations")
    pairs, counts = encode_demonstrations(tokenizer, records, _limits(context))
    held_out, held_out_counts = encode_demonstrations(tokenizer, held_out_records, _limits(context))
    counts |= {f"held_out_{key}": value for key, value in held_out_counts.items()}
    note_repeated_openings(context, tokenizer, "demonstrations", [record.completion for record in records])

    model: Any = load_policy(spec.models["base"], spec.hardware, spec.revision, engine=choose_engine(context))
    has_grown = grow_embeddings(model, tokenizer)
    align_special_tokens(model, tokenizer)
    if settings.lora:
        require_adapter_base(spec.models["base"], "sft.lora")
        model = apply_lora(model, settings.lora, "CAUSAL_LM", spec.hardware, spec.revision)
    note_padding(context, model)
    compile_layers(context, model)
    trainer = make_sft_trainer(context, settings, model, tokenizer, pairs, held_out)
    last_step = train(trainer, context)

    with whole_model(trainer) as model:
        metrics: dict[str, float] = {}
        loss = heldout_loss(model, held_out or pairs[:_EVAL_BATCH], tokenizer.pad_token_id)
        require_useful_loss(context, loss, math.log(model.config.get_text_config().vocab_size))
        if held_out:
            metrics["eval/loss"] = loss
            metrics |= _answer_held_out(context, settings, model, tokenizer, judge, held_out_records)
        facts = read_facts(model, tokenizer, spec.models["base"])
        if context.is_main:
            # An adapter's base on the disk lacks the row that was made for the pad token.
            save_model(model, tokenizer, spec.output_dir, merge=bool(settings.lora and (settings.lora.merge or has_grown)))
    if held_out:
        context.write_metrics(last_step, {"eval/loss": metrics["eval/loss"]})
    return StageResult(metrics=metrics, facts=facts, counts=counts, **describe_machine(context))


@torch.no_grad()
def heldout_loss(model: Any, pairs: list[EncodedPair], pad_token_id: int) -> float:
    """Mean negative log-likelihood per held-out response token, in nats; every token weighs alike, whatever its batch."""
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    longest = max(len(pair.prompt_ids) + len(pair.response_ids) for pair in pairs)
    vocab_size = model.config.get_text_config().vocab_size
    batch_size = max(1, min(_EVAL_BATCH, _MAX_EVAL_LOGITS // (longest * vocab_size)))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        width = max(len(pair.prompt_ids) + len(pair.response_ids) for pair in batch)
        ids_BT = torch.full((len(batch), width), pad_token_id)
        labels_BT = torch.full((len(batch), width), IGNORED_LABEL)
        for row, pair in enumerate(batch):
            ids = pair.prompt_ids + pair.response_ids
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            labels_BT[row, len(pair.prompt_ids) : len(ids)] = torch.tensor(pair.response_ids)
        # Right padding under a causal mask: no real token sees a pad, so no attention mask is needed.
        with autocast(find_backbone(model), device):
            logits_BTV = model(input_ids=ids_BT.to(device)).logits[:, :-1]
        targets_BT = labels_BT[:, 1:].to(device)
        total += F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="sum").item()
        tokens += int((targets_BT != IGNORED_LABEL).sum())
    return total / tokens


def _answer_held_out(
    context: StageContext,
    settings: SFTSettings,
    model: Any,
    tokenizer: Any,
    judge: Any,
    records: list[Demonstration],
) -> dict[str, float]:
    """Answer held-out prompts, sampled and greedy; write samples.jsonl; return the averages."""
    spec = context.spec
    if settings.eval_samples == 0:
        return {}
    prompts, _ = encode_prompts(tokenizer, [Prompt(record.prompt) for record in records[: settings.eval_samples]], _limits(context))
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    for way in ("sampled", "greedy"):
        answers = answer_prompts(
            model,
            tokenizer,
            [prompt.prompt_ids for prompt in prompts],
            max_new_tokens=spec.tokens.max_response_tokens,
            seed=spec.seed,
            greedy=way == "greedy",
        )
        averages, listed = report_answers(way, prompts, answers, judge_answers(judge, prompts, answers))
        metrics |= averages
        rows += listed
    if context.is_main:
        write_samples(spec.output_dir / SAMPLES_FILE, rows)
    return metrics


def require_useful_loss(context: StageContext, loss: float, of_chance: float) -> None:
    """Note a loss above that of a model which knows nothing, `of_chance`.

    Raises:
        StageError: it is not finite.
    """
    if not math.isfinite(loss):
        raise StageError(f"the trained model's loss is {loss}; a finite one is needed; lower sft.learning_rate")
    if loss > of_chance:
        context.note(f"the loss {loss:.3g} is above {of_chance:.3g}, that of a model which knows nothing; lower sft.learning_rate")


def _limits(context: StageContext) -> tuple[int, int]:
    return context.spec.tokens.max_prompt_tokens, context.spec.tokens.max_response_tokens


if __name__ == "__main__":
    run_stage("sft", main)
