"""samples.jsonl -> answers side by side: the worst, the best, random ones, and those on which reward model and judge disagree most.

Rows of an evaluation name their model and prompt; those of a stage are matched by the text of the prompt.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean, pstdev
from typing import Any

from data.secrets import redact
from pipeline.report.page.blocks import Case, Group, Said
from pipeline.report.rows import read_rows, tell_left_out
from pipeline.report.scales import format_value
from pipeline.report.verdict import name_model, place_model
from pipeline.text import count
from stages.spec import SAMPLES_FILE

_CASES = 3  # of each group
_SHOWN_CHARS = 4_000


@dataclass(frozen=True)
class Answer:
    """One row of samples.jsonl. Texts are as they were written."""

    model: str
    way: str
    prompt_key: str
    sample: int
    prompt: str
    response: str
    finished: bool | None = None
    score: float | None = None
    judge: float | None = None
    rank: int | None = None
    tokens: float | None = None


@dataclass(frozen=True)
class Answers:
    """All rows of a file, and what is to be told of it."""

    rows: list[Answer] = field(default_factory=list[Answer])
    problems: tuple[str, ...] = ()


def read_answers(directory: Path, kind: str) -> Answers:
    """Read the samples of an artifact; a line that is none is counted and told."""
    bad: dict[int, str] = {}
    try:
        rows = read_rows(directory / SAMPLES_FILE, bad)
    except ValueError as error:
        return Answers(problems=(f"{SAMPLES_FILE}: {error}; there are no answers to show",))
    answers: list[Answer] = []
    for number, row in rows:
        if isinstance(row.get("response"), str):
            answers.append(_read_answer(row, kind))
        else:
            bad[number] = "found no response; needed a text"
    return Answers(answers, tuple(tell_left_out(SAMPLES_FILE, bad, "no samples")))


def _read_answer(row: Mapping[str, Any], kind: str) -> Answer:
    prompt = row.get("prompt", "")
    prompt = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    finished, rank, sample = row.get("finished"), row.get("rank"), row.get("sample_id")
    return Answer(
        model=str(row.get("model", kind)),
        way=str(row.get("way", "")),
        prompt_key=str(row["prompt_id"]) if "prompt_id" in row else prompt,
        sample=sample if isinstance(sample, int) else 0,
        prompt=prompt,
        response=row["response"],
        finished=finished if isinstance(finished, bool) else None,
        score=_read_number(row.get("score")),
        judge=_read_number(row.get("judge_score")),
        rank=rank if isinstance(rank, int) else None,
        tokens=_read_number(row.get("response_tokens")),
    )


def _read_number(value: object) -> float | None:
    """Take a finite number; anything else is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100 else None


def choose_cases(answers: Sequence[Answer], order: Sequence[str] = ()) -> list[Group]:
    """Choose cases by the answers of the last model: PPO where there is one. No prompt stands in two groups.

    Worst and best are by the judge where there is one, else by the score. Disagreement is the difference of both in standard deviations.

    Args:
        answers: Of all models.
        order: The models to show; default: base, SFT, PPO, as far as they are there.
    """
    rows = [answer for answer in answers if answer.way in ("sampled", "")] or list(answers)
    names = sorted({answer.model for answer in rows}, key=place_model)
    models = list(order) or [name for name in names if "-" not in name] or names  # checkpoints have their curve
    if not models:
        return []
    by_prompt: dict[str, dict[str, list[Answer]]] = {}
    for answer in rows:
        if answer.model in models:
            by_prompt.setdefault(answer.prompt_key, {}).setdefault(answer.model, []).append(answer)
    last = name_model(models[-1])
    chosen = [answer for said in by_prompt.values() for answer in said.get(models[-1], ())]
    used: set[str] = set()

    def take(title: str, note: str, ordered: Iterable[Answer]) -> list[Group]:
        cases: list[Case] = []
        for answer in ordered:
            if answer.prompt_key not in used and len(cases) < _CASES:
                used.add(answer.prompt_key)
                cases.append(_make_case(answer, by_prompt[answer.prompt_key], models))
        return [Group(title, note, tuple(cases))] if cases else []

    doubted = take(
        "Largest disagreement of reward model and judge",
        f"Of all answers of {last}, those on which score and judge lie furthest apart, in standard deviations of each.",
        _by_disagreement(chosen),
    )
    ranked, scorer = _by_worth(chosen)
    worst = take("Worst", f"The answers of {last} that the {scorer} puts lowest.", ranked)
    best = take("Best", f"The answers of {last} that the {scorer} puts highest.", reversed(ranked))
    shuffled = Random(0).sample(chosen, len(chosen))
    return worst + best + take("Random", f"Drawn from {count(len(chosen), 'answer')} of {last}.", shuffled) + doubted


def choose_rankings(answers: Sequence[Answer]) -> list[Group]:
    """Choose prompts with the answers that people ranked, by the reward model's score, the highest first; random ones."""
    by_prompt: dict[str, list[Answer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt, []).append(answer)
    prompts = Random(0).sample(sorted(by_prompt), len(by_prompt))
    cases: list[Case] = []
    for prompt in prompts[: 2 * _CASES]:
        ordered = sorted(by_prompt[prompt], key=lambda answer: -(answer.score or 0.0))
        said = [_say(answer, "an answer" if answer.rank is None else f"rank {answer.rank} by people") for answer in ordered]
        cases.append(Case(*_cut(prompt), tuple(said)))
    note = f"Drawn from {count(len(by_prompt), 'held-out comparison')}; the highest score of the reward model comes first."
    return [Group("What the reward model prefers", note, tuple(cases))] if cases else []


def _by_worth(answers: Sequence[Answer]) -> tuple[list[Answer], str]:
    """Sort answers from the worst on, by the judge or else by the score; says by which."""
    for scorer in ("judge", "reward model"):
        valued = [(answer.judge if scorer == "judge" else answer.score, answer) for answer in answers]
        known = [(number, answer) for number, answer in valued if number is not None]
        if known:
            return [answer for _, answer in sorted(known, key=lambda pair: pair[0])], scorer
    return [], ""


def _by_disagreement(answers: Sequence[Answer]) -> list[Answer]:
    """Sort answers by how far score and judge lie apart; none where one of the two is missing or does not vary."""
    known = [(answer.score, answer.judge, answer) for answer in answers if answer.score is not None and answer.judge is not None]
    if len(known) < 2:
        return []
    scores, judges = [score for score, _, _ in known], [judge for _, judge, _ in known]
    spreads = pstdev(scores), pstdev(judges)
    if not all(spreads):
        return []
    means = fmean(scores), fmean(judges)
    gaps = [(abs((score - means[0]) / spreads[0] - (judge - means[1]) / spreads[1]), answer) for score, judge, answer in known]
    return [answer for _, answer in sorted(gaps, key=lambda pair: -pair[0])]


def _make_case(chosen: Answer, said: dict[str, list[Answer]], models: Sequence[str]) -> Case:
    """Put the answers of all models to a prompt side by side: the chosen one, and of the others the same sample or the first."""
    shown: list[Said] = []
    for model in models:
        if answers := said.get(model):
            same = next((answer for answer in answers if answer.sample == chosen.sample), answers[0])
            shown.append(_say(chosen if model == chosen.model else same, name_model(model)))
    return Case(*_cut(chosen.prompt), tuple(shown))


def _say(answer: Answer, name: str) -> Said:
    figures = [f"{label} {format_value(value)}" for label, value in (("score", answer.score), ("judge", answer.judge)) if value is not None]
    figures += ["cut at its longest length"] if answer.finished is False else []
    response, cut = _cut(answer.response)
    return Said(name if "@" in name else name[:1].upper() + name[1:], response, tuple(figures), cut)


def _cut(text: str) -> tuple[str, int]:
    """Blot out secrets, then keep what fits on a page, and count what does not."""
    whole = redact(text)
    return whole[:_SHOWN_CHARS], max(0, len(whole) - _SHOWN_CHARS)
