"""Answer sets -> rankings by a language model behind an OpenAI-compatible address, in the same journal as people's, and marked as such.

Each pair of a set is asked about in both orders, a tie where the two disagree; an answer's points are its wins and half its ties. A set is
in the journal as soon as it is judged, replies are cached, and what they cost stands beside it: the same command goes on.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from data.answers import AnswerSet
from pipeline.errors import StoreError
from pipeline.ranking.assignment import draw
from pipeline.ranking.journal import Journal, Judgement
from stages.blocks import EndpointSettings
from stages.responses.chat_api import ChatClient, Told
from stages.responses.llm_judge import INSTRUCTIONS, How, Pair, Verdict, compare_pairs, count_hows
from stages.spec import EXIT_USAGE

_ROUNDS = 4  # of requests at once, between two times that sets go into the journal


@dataclass
class Judged:
    """What came of asking a model.

    Args:
        sets: That it ranked now.
        unclear: Of which it gave a reply that is no verdict: "cannot say".
        before: That it had judged before.
        unasked: That could have cost more than is left of `max_cost`.
        pairs: How pairs were decided.
        replies: That were read now, those of the cache too.
        cost: Of all sets that it judged so far; None without prices.
    """

    sets: int = 0
    unclear: int = 0
    before: int = 0
    unasked: int = 0
    pairs: Counter[How] = field(default_factory=Counter[How])
    replies: int = 0
    cached: int = 0
    cost: float | None = None


def rank_by_model(
    answers: Mapping[str, AnswerSet],
    journal: Journal,
    settings: EndpointSettings,
    *,
    guidelines: str = "",
    cache_dir: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    told: Told | None = None,
) -> Judged:
    """Have a model rank answer sets; those that it has ranked already are left out.

    Args:
        answers: By id.
        journal: Where it is written.
        settings: Which model, and how much it may cost in all.
        guidelines: What makes an answer better; default: that of every judge here.
        cache_dir: Where replies are kept.
        seed: Of the choice of sets.
        limit: How many sets at most, chosen at random.
        told: Hears how many of how many sets are judged.

    Raises:
        ChatError: The model cannot be asked.
        StoreError: The journal holds what the same model said under other guidelines.
        ResourceError: The disk is full.
    """
    instructions = guidelines.strip() or INSTRUCTIONS
    judge = _identify(settings, instructions)
    own = _list_own(journal, settings.model, judge)
    chosen = sorted(answers, key=lambda item: draw(seed, "model", item))[:limit]
    done = {each.item for each in own}
    waiting = [item for item in chosen if item not in done]
    spent = sum(each.cost for each in own)
    judged = Judged(before=len(chosen) - len(waiting), cost=spent)
    if settings.max_cost is not None:
        if settings.max_cost <= spent:
            judged.unasked = len(waiting)
            return judged
        settings = settings.model_copy(update={"max_cost": settings.max_cost - spent})
    client = ChatClient(settings, cache_dir)
    if waiting:
        client.check()
    # Under a limit each set by itself, so that what it cost is known to the last reply.
    batches = _divide(waiting, answers, settings.concurrency) if settings.max_cost is None else ([item] for item in waiting)
    for batch in batches:
        if judged.unasked:
            judged.unasked += len(batch)
            continue
        before = client.cost or 0.0
        verdicts = iter(compare_pairs(client, [pair for item in batch for pair in list_pairs(answers[item])], instructions))
        each_cost = ((client.cost or 0.0) - before) / len(batch)
        for item in batch:
            own_verdicts = [next(verdicts) for _ in list_pairs(answers[item])]
            _write(journal, item, own_verdicts, len(answers[item].completions), settings.model, judge, each_cost, judged)
        if told is not None:
            told(judged.before + judged.sets + judged.unclear, len(chosen))
    judged.replies, judged.cached = client.usage.replies, client.usage.cached
    judged.cost = None if client.cost is None else spent + client.cost
    return judged


def _list_own(journal: Journal, model: str, judge: str) -> list[Judgement]:
    """List what a model has said before, and refuse to mix it with what it said when it was asked otherwise."""
    own = [each for each in journal.judgements.values() if each.model == model and not each.tool]
    if other := [each for each in own if each.judge != judge]:
        found = f"found {len(other)} rankings of {model} under other guidelines or settings"
        raise StoreError(f"{journal.path}: {found}; needed those of one judge; give another --journal", EXIT_USAGE)
    return own


def list_pairs(answers: AnswerSet) -> list[Pair]:
    """List all pairs of a set's answers, in the order of `combinations`."""
    conversation = [{"role": message.role, "content": message.content} for message in answers.prompt]
    return [Pair(conversation, a, b) for a, b in combinations(answers.completions, 2)]


def rank_by_points(outcomes: Sequence[float], count: int) -> tuple[int, ...]:
    """Rank answers by their points, one for a win and half for a tie (Copeland); equal points are ties. A circle of wins is a tie.

    Example: three answers, 0 beats 1, 0 ties 2, 1 ties 2: points 1.5, 0.5, 1: ranks (1, 3, 2).

    Args:
        outcomes: of each pair, in the order of `combinations`: 0 where its first answer won, 1 where its second, 0.5 for a tie.
        count: of answers.
    """
    points = [0.0] * count
    for (a, b), outcome in zip(combinations(range(count), 2), outcomes, strict=True):
        points[a] += 1 - outcome
        points[b] += outcome
    return tuple(1 + sum(other > own for other in points) for own in points)


def _identify(settings: EndpointSettings, instructions: str) -> str:
    """What its verdicts depend on; the same model asked in another way is another judge."""
    asked = [settings.url, settings.model, settings.max_reply_tokens, settings.request, instructions]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _divide(waiting: Sequence[str], answers: Mapping[str, AnswerSet], concurrency: int) -> Iterator[list[str]]:
    """Divide sets into batches that keep all connections busy for some rounds."""
    batch: list[str] = []
    asked = 0
    for item in waiting:
        batch.append(item)
        asked += 2 * len(list_pairs(answers[item]))
        if asked >= _ROUNDS * concurrency:
            yield batch
            batch, asked = [], 0
    if batch:
        yield batch


def _write(
    journal: Journal, item: str, verdicts: Sequence[Verdict], count: int, model: str, judge: str, cost: float, judged: Judged
) -> None:
    hows = count_hows(verdicts)
    if hows["unasked"]:
        judged.unasked += 1
        return
    outcomes = [verdict.outcome for verdict in verdicts if verdict.outcome is not None]
    ranks = rank_by_points(outcomes, count) if len(outcomes) == len(verdicts) else None
    judged.pairs.update(hows)
    judged.sets += ranks is not None
    judged.unclear += ranks is None
    said = {
        "id": hashlib.sha256(f"model\0{judge}\0{model}\0{item}".encode()).hexdigest()[:32],
        "item": item,
        "annotator": f"model:{model}"[:100],
        "order": (),
        "outcome": "ranked" if ranks else "cannot say",
        "ranks": ranks,
        "reason": "" if ranks else f"{hows['malformed']} of {len(verdicts)} pairs got a reply that is no verdict",
        "model": model,
        "judge": judge,
        "pairs": {how: number for how, number in hows.items() if number},
        "cost": cost,
        "time": time.time(),
    }
    journal.add(Judgement.model_validate(said))
