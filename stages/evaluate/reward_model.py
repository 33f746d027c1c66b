"""The reward model is asked of held-out comparisons and of copies of their best answers with one flaw each -> its card."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data.tokens import EncodedComparison, EncodedPromptRecord, encode_response
from stages.evaluate.card import ProbePairs, judge_probes, make_card
from stages.evaluate.probes import Edit, ProbeError, ask_function, edit_answer, find_names
from stages.evaluate.results import Probe, RewardCard
from stages.evaluate.scoring import score_answers
from stages.evaluate_settings import EvaluateSettings
from stages.models.reward_model import find_calibration
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.process.ranks import Ranks
from stages.responses.judge import load_function
from stages.responses.judging import response_text


def examine_reward_model(
    context: StageContext,
    ranks: Ranks,
    settings: EvaluateSettings,
    reward_model: Any,
    tokenizer: Any,
    held_out: Sequence[EncodedComparison],
    prompts: Sequence[EncodedPromptRecord],
) -> tuple[RewardCard | None, list[str]]:
    """Make the reward model's card.

    Args:
        context: Of the stage.
        ranks: Which share the work.
        settings: How many comparisons.
        reward_model: Which is asked.
        tokenizer: That of the policy.
        held_out: Comparisons.
        prompts: Their prompts, in the same order.

    Returns:
        (the card, None where nothing is held out; what could not be measured).
    """
    comparisons = list(held_out[: settings.comparisons])
    if not comparisons:
        return None, ["what the reward model sees: no comparisons are held out; give data.comparisons.eval"]
    rankings = [(item.prompt_ids, item.responses) for item in comparisons]
    scores_N = score_answers(ranks, reward_model, rankings, context.tells("scores of held-out comparisons"))
    if not np.isfinite(scores_N).all():
        return None, ["what the reward model sees: scores of held-out comparisons are not finite; train the rm stage with a lower rate"]
    starts = np.cumsum([0, *(len(item.responses) for item in comparisons)])[:-1]
    best = [int(start) + int(np.argmin(item.ranks)) for start, item in zip(starts, comparisons, strict=True)]
    probes, missing = _probe(context, ranks, settings, reward_model, tokenizer, comparisons, prompts, scores_N[best])
    calibration = find_calibration(reward_model)
    card = make_card(comparisons, scores_N, calibration.scale if calibration else 1.0, probes)
    if card is None:
        missing.append("what the reward model sees: no held-out comparison has two answers of different ranks; give some")
    elif len(comparisons) < 2:
        missing.append("how sure the reward model's figures are: found 1 held-out comparison, needed 2; give data.comparisons.eval")
    return card, missing


def _probe(
    context: StageContext,
    ranks: Ranks,
    settings: EvaluateSettings,
    reward_model: Any,
    tokenizer: Any,
    comparisons: Sequence[EncodedComparison],
    prompts: Sequence[EncodedPromptRecord],
    best_scores_P: Any,
) -> tuple[tuple[Probe, ...], list[str]]:
    """Edit the best answers of the first comparisons, and ask the reward model of each copy."""
    asked = comparisons[: settings.probe_prompts]
    if not asked:
        return (), []
    questions = [prompts[place].prompt[-1].content for place in range(len(asked))]
    texts = [response_text(tokenizer, item.responses[int(np.argmin(item.ranks))]) for item in asked]
    edits, missing = _edit(context, settings, questions, texts)
    pairs: dict[str, ProbePairs] = {}
    rankings: list[tuple[list[int], list[list[int]]]] = []
    num_copies = 0
    for place, found in enumerate(edits):
        rankings.append((asked[place].prompt_ids, [encode_response(tokenizer, edit.text) for edit in found.values()]))
        for copy, (name, edit) in enumerate(found.items(), start=num_copies):
            pair = pairs.setdefault(name, ProbePairs(edit.description))
            pair.prompts.append(place)
            pair.copies.append(copy)
        num_copies += len(found)
    copied_N = score_answers(ranks, reward_model, rankings, context.tells("scores of probes"))
    if not np.isfinite(copied_N).all():
        return (), [*missing, "which flaws the reward model sees: its scores of the probes are not finite; train the rm stage anew"]
    probes, too_few = judge_probes(pairs, best_scores_P, copied_N)
    return probes, missing + too_few


def _edit(
    context: StageContext, settings: EvaluateSettings, questions: Sequence[str], texts: Sequence[str]
) -> tuple[list[dict[str, Edit]], list[str]]:
    names = sorted({name for text in texts for name in find_names(text)})
    edits = [edit_answer(question, text, names) for question, text in zip(questions, texts, strict=True)]
    if settings.probes is None:
        return edits, []
    try:
        function: Callable[..., Any] = load_function("evaluate.probes", settings.probes, context.spec.judge_directory)
        own = [ask_function(function, settings.probes, question, text) for question, text in zip(questions, texts, strict=True)]
    except (StageError, ProbeError) as error:
        return edits, [f"whether the reward model sees the task's own flaws: {error}"]
    return [mine | theirs for mine, theirs in zip(edits, own, strict=True)], []
