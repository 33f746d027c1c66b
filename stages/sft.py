"""Stage 1, supervised fine-tuning: base model + demonstrations -> policy.

demonstrations -> token ids -> TRL's SFTTrainer (loss on the response) -> model/, held-out loss, sampled answers
"""

import math
from collections.abc import Sequence
from typing import Any

from data.token_file import TokenRows, read_prompt
from data.token_split import TokenSet
from data.tokens import EncodedPromptRecord
from stages.family import check_base
from stages.language import load_learner, measure_loss
from stages.models.adapters import find_model
from stages.models.handoff import read_facts
from stages.models.quiet import quiet
from stages.models.save import save_model
from stages.models.special_tokens import has_grown
from stages.models.tokenizer import settle_tokenizer
from stages.process.best import Candidate, choose
from stages.process.context import StageContext, describe_machine
from stages.process.errors import StageError
from stages.process.runtime import run_stage
from stages.responses.chooser import Chooser
from stages.responses.generation import note_decoding
from stages.responses.judge import Judge, load_judge
from stages.responses.judging import Answer, answer_prompts, judge_answers, report_answers, response_text, write_samples
from stages.result import Interval, StageResult
from stages.result_intervals import find_answer_intervals
from stages.settings import SFTSettings
from stages.spec import EXIT_USAGE, SAMPLES_FILE
from stages.tokens import load_tokens
from stages.trl.best import BestKeeper, FindValue
from stages.trl.gathering import whole_model
from stages.trl.sft import make_sft_trainer
from stages.trl.training import train


def main(context: StageContext) -> StageResult:
    """Fine-tune the base model on demonstrations."""
    spec = context.spec
    settings = spec.settings
    assert isinstance(settings, SFTSettings)
    judge = load_judge(spec.judge, spec.judge_directory)
    check_base(spec.models["base"], "sft", settings.lora, spec.revision)  # what RM and PPO cannot do is said here too
    tokenizer: Any
    tokenizer, taken = settle_tokenizer(spec.models["base"], spec.tokens, spec.revision)
    context.note(taken)
    demonstrations, held_out_demonstrations = load_tokens(context, tokenizer, "demonstrations")
    counts = demonstrations.counts() | {f"held_out_{key}": value for key, value in held_out_demonstrations.counts().items()}
    pairs, held_out = demonstrations.pairs, held_out_demonstrations.pairs

    prompts = held_out_demonstrations.prompts[: settings.eval_samples]
    model: Any = load_learner(context, settings, tokenizer)
    note_decoding(context, model)
    find_value = _make_chooser(context, settings, tokenizer, judge, held_out_demonstrations)
    keeper = _make_keeper(context, settings, find_value, len(held_out))
    trainer = make_sft_trainer(context, settings, model, tokenizer, pairs, held_out, keeper)
    last_step = train(trainer, context)

    quiet(find_model(model))  # TRL has switched a mixture's routers on
    with whole_model(trainer) as model:

        def measure() -> tuple[dict[str, float], dict[str, Interval]]:
            loss, interval = measure_loss(context, model, held_out, pairs)
            if not held_out:
                return {}, {}
            figures, rows = _answer_held_out(context, model, tokenizer, judge, prompts)
            return {"eval/loss": loss, **figures}, ({"eval/loss": interval} if interval else {}) | find_answer_intervals(rows)

        metrics, intervals = measure()
        last_loss = metrics.get("eval/loss")
        if keeper:
            last = keeper.consider(last_step, model, metrics["eval/loss"]) if settings.chooser else _find_last(settings, last_step, metrics)
            step = keeper.go_back(model, last, last_step)
            if step != last_step:
                context.note(f"the model of step {step} of {last_step} was best by the held-out {settings.publish_by}: it is published")
                metrics, intervals = measure()
            metrics["published/step"] = step
            if settings.chooser and (chosen := choose(keeper.best, last)):
                metrics["published/judge_score"] = chosen.value
        facts = read_facts(model, tokenizer, spec.models["base"])
        if context.is_main:
            context.progress("saving", 0, 0)
            # An adapter's base on the disk lacks the row that was made for the pad token.
            save_model(
                model, tokenizer, spec.output_dir, merge=bool(settings.lora and (settings.lora.merge or has_grown(find_model(model))))
            )
    if last_loss is not None:
        context.write_metrics(last_step, {"eval/loss": last_loss})
    return StageResult(metrics=metrics, intervals=intervals, facts=facts, counts=counts, **describe_machine(context))


def _make_keeper(context: StageContext, settings: SFTSettings, find_value: FindValue, held_out: int) -> BestKeeper | None:
    """Make what holds the best model so far; None: the last is published.

    Raises:
        StageError: Nothing is held out to choose by; exit code 2.
    """
    if settings.judge is not None and settings.chooser is None:
        found = f"sft.publish is {settings.publish} and sft.publish_by {settings.publish_by}"
        context.note(f"sft.judge is not used: {found}")
    if settings.publish == "last":
        if settings.publish_by != "loss":
            context.note(f"sft.publish_by = {settings.publish_by} is not used: sft.publish is last")
        return None
    if not held_out:
        found = "sft.publish: found best and no held-out demonstration, needed at least one to choose by"
        raise StageError(f"{found}; give data.demonstrations.eval or raise data.eval_fraction, or set publish: last", EXIT_USAGE)
    return BestKeeper(context, find_value)


def _make_chooser(context: StageContext, settings: SFTSettings, tokenizer: Any, judge: Judge | None, held_out: TokenSet) -> FindValue:
    """Make what says of the model of a step how good it is: the higher, the better."""
    prompts = held_out.prompts[: settings.eval_samples]
    if settings.chooser is not None:
        return _ask_chooser(context, settings, tokenizer, Chooser(context, settings.chooser), held_out)

    def find_value(model: Any, loss: float) -> float:
        if settings.publish_by == "loss":
            return -loss
        figures, _ = _answer(context, model, tokenizer, judge, prompts, "sampled")
        return figures.get("eval/sampled/judge_score", math.nan)

    return find_value


def _ask_chooser(context: StageContext, settings: SFTSettings, tokenizer: Any, chooser: Chooser, held_out: TokenSet) -> FindValue:
    prompts = TokenRows(held_out.file, held_out.used, read_prompt)[: settings.eval_samples]
    demonstrations = [response_text(tokenizer, pair.response_ids) for pair in held_out.pairs[: settings.eval_samples]]

    def find_value(model: Any, loss: float) -> float:
        answers = _sample(context, model, tokenizer, prompts, "sampled")
        return chooser.ask(prompts, demonstrations, answers) if context.is_main else math.nan

    return find_value


def _find_last(settings: SFTSettings, step: int, metrics: dict[str, float]) -> Candidate | None:
    """Read what the last model is chosen by of its final figures."""
    value = -metrics["eval/loss"] if settings.publish_by == "loss" else metrics.get("eval/sampled/judge_score", math.nan)
    return Candidate(step, value) if math.isfinite(value) else None


def _answer_held_out(
    context: StageContext,
    model: Any,
    tokenizer: Any,
    judge: Judge | None,
    prompts: Sequence[EncodedPromptRecord],
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answer held-out prompts, sampled and greedy; write samples.jsonl; return the averages and the rows."""
    spec = context.spec
    if not prompts:
        return {}, []
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    for way in ("sampled", "greedy"):
        averages, listed = _answer(context, model, tokenizer, judge, prompts, way)
        metrics |= averages
        rows += listed
    if context.is_main:
        write_samples(spec.output_dir / SAMPLES_FILE, rows)
    return metrics, rows


def _answer(
    context: StageContext, model: Any, tokenizer: Any, judge: Judge | None, prompts: Sequence[EncodedPromptRecord], way: str
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Answer held-out prompts in one way; return the averages and the rows; tell how the judge failed."""
    answers = _sample(context, model, tokenizer, prompts, way)
    verdicts, failure = judge_answers(judge if context.is_main else None, prompts, answers)
    if failure:
        context.note(failure)
    return report_answers(way, prompts, answers, verdicts)


def _sample(context: StageContext, model: Any, tokenizer: Any, prompts: Sequence[EncodedPromptRecord], way: str) -> list[Answer]:
    return answer_prompts(
        model,
        tokenizer,
        [prompt.prompt_ids for prompt in prompts],
        max_new_tokens=context.spec.tokens.max_response_tokens,
        seed=context.spec.seed,
        greedy=way == "greedy",
        told=context.tells(f"held-out answers, {way}"),
    )


if __name__ == "__main__":
    run_stage("sft", main)
