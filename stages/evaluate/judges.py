"""Who says what answers are worth: a function of the user's, a second reward model, or a language model that compares them with SFT's.

A function and a reward model give every answer figures. A language model says which of two answers is better, so that the score of an
answer is 1, 0.5 or 0 against SFT's answer to the same prompt, and SFT's own is 0.5. NaN: it said nothing of that answer.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from data.tokens import EncodedPromptRecord
from stages.evaluate.answers import Arrays, Shelf, together
from stages.evaluate.measure import JUDGE_SCORE, Measured
from stages.evaluate.results import LLMAsked
from stages.evaluate_settings import EvaluateSettings, LLMJudgeSettings
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.errors import StageError
from stages.process.ranks import Ranks
from stages.responses.chat_api import ChatClient
from stages.responses.chat_http import ChatError
from stages.responses.judge import Judge, JudgeError, load_judge
from stages.responses.judge_model import JudgeModel
from stages.responses.llm_judge import Pair, Verdict, compare_pairs, count_hows, list_questions
from stages.spec import StageSpec

_CHUNK = 64  # answers of a rank between two words on how far it is
Prompts = Sequence[EncodedPromptRecord]
Ask = Callable[[Sequence[tuple[int, str, bool]]], list[dict[str, float]]]  # (prompt, response, finished) of each answer -> figures


def name_judge(spec: StageSpec, settings: EvaluateSettings) -> str | None:
    """Name the judge in a word or two; None: there is none."""
    judge = settings.judge
    if judge is None:
        return spec.judge
    return judge.reward_model if judge.llm is None else name_llm(judge.llm)


def name_llm(settings: LLMJudgeSettings) -> str:
    """Name a language model: what it is called, and where."""
    return f"{settings.model} at {urlsplit(settings.url).hostname}"


def judge_each(context: StageContext, ranks: Ranks, shelf: Shelf, measured: dict[str, Measured], prompts: Prompts) -> list[str]:
    """Have every answer judged by itself: by the second reward model where evaluate has one, else by the user's function.

    Returns:
        What could not be measured; a judge that failed is not asked again.
    """
    settings = context.spec.settings
    assert isinstance(settings, EvaluateSettings)
    asked: Ask | None = None
    for name, found in measured.items():
        if not shelf.has(f"{name}.judge"):
            told = context.tells(f"judge of {found.subject.model}, {found.subject.way}")
            try:
                asked = asked or (_open_model(context, ranks, prompts) if settings.judge else _open_function(context.spec, prompts))
                work = functools.partial(_ask_share, ranks, asked, found, told)
                verdicts = together(ranks, work, len(found.texts))
            except StageError as error:
                return [f"what the judge says: {error}"]
            except ValueError as error:
                return [f"what the judge says of {name} and what comes after it: {error}"]
            figures = {each: np.array([verdict[each] for verdict in verdicts], dtype=np.float64) for each in verdicts[0]}
            shelf.keep(f"{name}.judge", pack_verdicts(figures))
        found.verdicts = unpack_verdicts(shelf.read(f"{name}.judge"))
    return []


def _open_function(spec: StageSpec, prompts: Prompts) -> Ask:
    judge = load_judge(spec.judge, spec.judge_directory)
    assert judge is not None
    return functools.partial(_ask_function, judge, prompts)


def _ask_function(judge: Judge, prompts: Prompts, answers: Sequence[tuple[int, str, bool]]) -> list[dict[str, float]]:
    try:
        return [judge.ask(prompts[prompt].prompt[-1].content, response, finished) for prompt, response, finished in answers]
    except JudgeError as error:
        raise ValueError(str(error)) from error


def _open_model(context: StageContext, ranks: Ranks, prompts: Prompts) -> Ask:
    spec = context.spec
    settings = spec.settings
    assert isinstance(settings, EvaluateSettings) and settings.judge is not None
    context.progress("opening the judge", 0, 0)
    model = JudgeModel(spec.models["judge"], settings.judge.revision, spec.hardware, ranks.device)
    if model.is_encoder:
        context.note(f"the judge {settings.judge.reward_model} is an encoder: it reads prompt and answer as a pair of texts")

    def ask(answers: Sequence[tuple[int, str, bool]]) -> list[dict[str, float]]:
        scores = model.score(
            [prompts[prompt].prompt for prompt, _, _ in answers], [text for _, text, _ in answers], [done for _, _, done in answers]
        )
        if not np.isfinite(scores).all():
            raise ValueError(f"its scores are not finite; take another than {model.path}")
        return [{JUDGE_SCORE: score} for score in scores]

    return ask


def _ask_share(ranks: Ranks, ask: Ask, found: Measured, told: Callable[[int, int], None]) -> list[dict[str, float]]:
    samples, finished_N = found.answers.samples, found.answers.finished_N
    places = range(ranks.index, len(found.texts), ranks.count)
    answers = [(place // samples, found.texts[place], bool(finished_N[place])) for place in places]
    verdicts: list[dict[str, float]] = []
    for start in range(0, len(answers), _CHUNK):
        told(start, len(answers))
        verdicts += ask(answers[start : start + _CHUNK])
    told(len(answers), len(answers))
    return verdicts


def pack_verdicts(verdicts: dict[str, Any]) -> Arrays:
    """Put figures of any names into arrays that can be kept."""
    return {"names": np.array(json.dumps(list(verdicts))), "values_FN": np.stack(list(verdicts.values()))}


def unpack_verdicts(arrays: Arrays) -> dict[str, Any]:
    """Undo `pack_verdicts`."""
    return dict(zip(json.loads(str(arrays["names"])), arrays["values_FN"], strict=True))


def judge_pairs(
    context: StageContext, settings: LLMJudgeSettings, measured: dict[str, Measured], prompts: Prompts
) -> tuple[LLMAsked | None, list[str]]:
    """Have a language model compare the answers of all models with those of SFT; the main process asks.

    Returns:
        (what was asked, None where it could not be; what could not be measured).
    """
    places = _list_pairs(measured, settings.samples)
    if not places:
        return None, ["what the judge says: the answers of SFT, which it compares with, are not there"]
    pairs = [_make_pair(measured, prompts, name, place) for name, place in places]

    def ask() -> tuple[list[Verdict], LLMAsked]:
        try:
            client = ChatClient(settings, context.spec.replies_dir)
            bound = client.bound_cost(list_questions(pairs, settings.instructions))
            most = "" if bound is None else f", which cost {bound:.2g} at most"
            limit = "" if settings.max_cost is None else f" (max_cost: {settings.max_cost:g})"
            context.note(f"the judge {name_llm(settings)} is asked of {len(pairs):,} pairs in both orders{most}{limit}")
            verdicts = compare_pairs(client, pairs, settings.instructions, context.tells("replies of the judge"))
        except ChatError as error:
            raise StageError(str(error)) from error
        usage, counts = client.usage, count_hows(verdicts)
        if usage.cached:
            context.note(f"{usage.cached:,} of {usage.replies:,} replies were there from before, and were not asked again")
        tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "uncounted": usage.uncounted}
        return verdicts, LLMAsked(pairs=len(pairs), **counts, replies=usage.replies, **tokens, cost=client.cost, max_cost=settings.max_cost)

    try:
        verdicts, asked = decide_in_main(context, ask)
    except StageError as error:
        return None, [f"what the judge says: {error}; the same command goes on where it stopped"]
    for name, found in measured.items():
        outcomes_N = np.full(len(found.texts), 0.5 if found.subject.model == "sft" else np.nan)
        for (other, place), verdict in zip(places, verdicts, strict=True):
            if other == name and verdict.outcome is not None:
                outcomes_N[place] = verdict.outcome
        if np.isfinite(outcomes_N).any():
            found.verdicts, found.pairwise = {JUDGE_SCORE: outcomes_N}, True
    return asked, list(_list_lost(asked))


def _list_pairs(measured: dict[str, Measured], samples: int) -> list[tuple[str, int]]:
    """List the answers that are compared: first those of what is published, so that a limit of cost takes what matters least."""
    order = [name for name in ("ppo-sampled", "ppo-greedy") if name in measured]
    order += [name for name, found in measured.items() if found.subject.model not in ("ppo", "sft", "base")]
    order += [name for name in ("base-sampled", "base-greedy") if name in measured]
    listed: list[tuple[str, int]] = []
    for name in order:
        found, sft = measured[name], measured.get(f"sft-{measured[name].subject.way}")
        if sft is not None:
            listed += [(name, int(place)) for place in found.first(min(samples, found.answers.samples, sft.answers.samples))]
    return listed


def _make_pair(measured: dict[str, Measured], prompts: Prompts, name: str, place: int) -> Pair:
    found, sft = measured[name], measured[f"sft-{measured[name].subject.way}"]
    prompt, sample = divmod(place, found.answers.samples)
    conversation = [{"role": message.role, "content": message.content} for message in prompts[prompt].prompt]
    return Pair(conversation, sft.texts[prompt * sft.answers.samples + sample], found.texts[place])


def _list_lost(asked: LLMAsked) -> Iterator[str]:
    if asked.malformed:
        todo = "raise max_reply_tokens, or take another model"
        yield f"{asked.malformed} of {asked.pairs} pairs: replies of the judge were no verdict, and nothing is guessed; {todo}"
    if asked.unasked:
        yield f"{asked.unasked} of {asked.pairs} pairs: the judge was not asked, as max_cost = {asked.max_cost:g} was near; raise it"
