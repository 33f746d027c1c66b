"""Answers to held-out prompts, what a judge says of them, and the samples file.

The judge (a rule, a test suite) is never seen in training; it only tells whether a rising score is real.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from data.tokens import EncodedPromptRecord
from stages.lines import to_line
from stages.process.context import Told
from stages.responses.generation import generate_responses
from stages.responses.judge import Judge, JudgeError

_ROWS = 64  # prompts answered at once


@dataclass(frozen=True)
class Answer:
    """A response to a held-out prompt: its ids (end token included), its text, and whether it ended by itself."""

    ids: list[int]
    text: str
    finished: bool


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int,
    greedy: bool,
    told: Told,
) -> list[Answer]:
    """Answer prompts from a fixed seed, leaving the training's random state and the model's mode untouched."""
    end: int = tokenizer.eos_token_id
    responses = generate_responses(
        model, prompts, max_new_tokens=max_new_tokens, stop_token_ids={end}, greedy=greedy, seed=seed, max_rows=_ROWS, told=told
    )
    return [Answer(response.ids, response_text(tokenizer, response.ids), response.ids[-1] == end) for response in responses]


def response_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode a response without its control tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def judge_answers(
    judge: Judge | None, prompts: Sequence[EncodedPromptRecord], answers: Sequence[Answer]
) -> tuple[list[dict[str, float]], str | None]:
    """Judge each answer. A judge that fails must not cost the model; who failed once is not asked again.

    Returns:
        The figures of each answer, all empty where there is no judge or it failed; what to tell the user where it failed.
    """
    nothing: list[dict[str, float]] = [{} for _ in answers]
    if judge is None or judge.has_failed:
        return nothing, None
    try:
        judged = [
            judge.ask(prompt.prompt[-1].content, answer.text, answer.finished) for prompt, answer in zip(prompts, answers, strict=True)
        ]
    except JudgeError as error:
        return nothing, f"{error}; it is not asked again, and the model is published without its figures"
    return judged, None


def report_answers(
    way: str,
    prompts: Sequence[EncodedPromptRecord],
    answers: Sequence[Answer],
    verdicts: Sequence[Mapping[str, float]],
    figures: Sequence[Mapping[str, float]] | None = None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Average over the answers, and list them.

    Args:
        way: how they were found; names the figures and the rows.
        prompts: one for each answer.
        answers: to them.
        verdicts: of the judge, see `judge_answers`.
        figures: what else is known of each answer.

    Returns:
        (`eval/<way>/<figure>`, `.../finished`, `.../response_tokens` and `.../judge_<figure>`, rows of the samples file); both empty
        where there is no answer.
    """
    if not answers:
        return {}, []
    figures = figures or [{} for _ in answers]
    averages = {key: fmean(each[key] for each in figures) for key in figures[0]}
    averages["finished"] = fmean(answer.finished for answer in answers)
    averages["response_tokens"] = fmean(len(answer.ids) for answer in answers)
    averages |= {f"judge_{key}": fmean(verdict[key] for verdict in verdicts) for key in verdicts[0]}
    rows: list[dict[str, Any]] = [
        {
            "way": way,
            "prompt": prompt.prompt[-1].content,
            "response": answer.text,
            **figure,
            "finished": answer.finished,
            "response_tokens": len(answer.ids),
            **{f"judge_{key}": value for key, value in verdict.items()},
        }
        for prompt, answer, verdict, figure in zip(prompts, answers, verdicts, figures, strict=True)
    ]
    return {f"eval/{way}/{key}": average for key, average in averages.items()}, rows


def write_samples(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(to_line(row, ascii_only=False))
