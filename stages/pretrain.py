"""Stage 0, continued pre-training: base model + plain texts -> a base model that knows their language.

texts -> token ids, packed -> TRL's SFTTrainer (loss on every token) -> model/, held-out loss and perplexity, continued beginnings
"""

import math
from typing import Any

from data.pieces import TextSet
from stages.family import check_base
from stages.language import load_learner, measure_loss
from stages.models.adapters import find_model
from stages.models.forward import is_packed
from stages.models.handoff import read_facts
from stages.models.quiet import quiet
from stages.models.save import save_model
from stages.models.special_tokens import count_tokens
from stages.models.tokenizer import limit_tokens, open_tokenizer
from stages.process.context import StageContext, describe_machine
from stages.process.errors import StageError
from stages.process.runtime import run_stage
from stages.responses.judging import answer_prompts, response_text, write_samples
from stages.result import StageResult
from stages.settings import PretrainSettings
from stages.spec import EXIT_USAGE, SAMPLES_FILE
from stages.texts import load_texts
from stages.trl.gathering import whole_model
from stages.trl.sft import make_language_trainer
from stages.trl.training import train

_BEGINNING_TOKENS, _CONTINUATION_TOKENS = 64, 64  # of a sample, at most


def main(context: StageContext) -> StageResult:
    """Train the base model on texts."""
    spec = context.spec
    settings = spec.settings
    assert isinstance(settings, PretrainSettings)
    check_base(spec.models["base"], "pretrain", settings.lora, spec.revision)
    # As it is: SFT, which settles template, end and pad token, then finds what it would find in the base model.
    tokenizer: Any = open_tokenizer(spec.models["base"], spec.revision)
    texts, held_out_texts = load_texts(context, tokenizer, end=True)
    counts = texts.counts() | {f"held_out_{key}": value for key, value in held_out_texts.counts().items()}
    pieces, held_out = (each.pieces(settings.sequence_length) for each in (texts, held_out_texts))
    _note_control_tokens(context, counts["texts_with_control_tokens"])

    model: Any = load_learner(context, settings)
    limit_tokens(find_model(model), count_tokens(tokenizer))
    _require_positions(model, spec.models["base"], settings.sequence_length)
    # Where our attention does not fit, a row of several texts might not keep them apart.
    if not is_packed(model):
        context.note("each piece of a text is a row of its own, padded: only hardware.attention: auto keeps several in a row apart")
    trainer = make_language_trainer(
        context, settings, model, tokenizer, pieces, held_out, max_length=settings.sequence_length, packing=is_packed(model)
    )
    rows: Any = trainer.train_dataset
    counts |= {"pieces": len(pieces), "rows": len(rows)}
    last_step = train(trainer, context)

    quiet(find_model(model))  # TRL has switched a mixture's routers on
    with whole_model(trainer) as model:
        metrics: dict[str, float] = {}
        loss, _ = measure_loss(context, model, held_out, pieces)  # pieces of one text are not independent: no interval of theirs
        if held_out:
            metrics = {"eval/loss": loss, "eval/perplexity": math.exp(loss)}
            _continue_held_out(context, settings, model, tokenizer, held_out_texts)
        facts = read_facts(model, tokenizer, spec.models["base"])
        if context.is_main:
            context.progress("saving", 0, 0)
            save_model(model, tokenizer, spec.output_dir, merge=bool(settings.lora and settings.lora.merge))
    if held_out:
        context.write_metrics(last_step, metrics)
    return StageResult(metrics=metrics, facts=facts, counts=counts, **describe_machine(context))


def _note_control_tokens(context: StageContext, count: int) -> None:
    """Tell of what may separate documents inside of a file, or be a chat that was rendered."""
    if count:
        hold = "holds" if count == 1 else "hold"
        context.note(
            f"{count} of the texts {hold} the text of a control token, which is learnt as ordinary text; if it separates documents, give "
            "each its own JSON line"
        )


def _require_positions(model: Any, name: str, sequence_length: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and sequence_length > limit:
        message = f"pretrain.sequence_length: found {sequence_length}, needed at most the {limit} positions of {name}; lower it"
        raise StageError(message, EXIT_USAGE)


def _continue_held_out(context: StageContext, settings: PretrainSettings, model: Any, tokenizer: Any, texts: TextSet) -> None:
    """Continue the beginnings of held-out texts, sampled and greedy, and write samples.jsonl."""
    half = settings.sequence_length // 2
    numbers = range(min(settings.eval_samples, len(texts.used)))
    beginnings = [texts.beginning(number, min(half, _BEGINNING_TOKENS)) for number in numbers]
    rows: list[dict[str, Any]] = []
    for way in ("sampled", "greedy") if beginnings else ():
        answers = answer_prompts(
            model,
            tokenizer,
            beginnings,
            max_new_tokens=min(half, _CONTINUATION_TOKENS),
            seed=context.spec.seed,
            greedy=way == "greedy",
            told=context.tells(f"held-out texts, {way}"),
        )
        rows += [
            {"way": way, "prompt": response_text(tokenizer, ids), "response": answer.text, "finished": answer.finished}
            for ids, answer in zip(beginnings, answers, strict=True)
        ]
    if context.is_main and rows:
        write_samples(context.spec.output_dir / SAMPLES_FILE, rows)


if __name__ == "__main__":
    run_stage("pretrain", main)
