"""A recipe's rounds, brought as far as they go without people: train, sample, publish what was ranked, train anew."""

from collections.abc import Callable
from dataclasses import replace

from pipeline.ranking.journal import Journal
from pipeline.ranking.place import find_answers
from pipeline.ranking.summary import summarise
from pipeline.recipe.schema import Recipe, RoundSettings
from pipeline.rounds.chain import (
    Round,
    find_replaced,
    find_reward_model,
    lacks_chooser,
    list_policies,
    selection_of,
    settings_of,
    walk,
)
from pipeline.rounds.publish import PublishedRankings, publish_rankings, tell_published
from pipeline.rounds.sampling import sample
from pipeline.run import View, run
from pipeline.store.store import Store

Say = Callable[[str], None]


def advance(recipe: Recipe, store: Store, view: View, say: Say, *, wait: bool = True) -> Round:
    """Do what can be done until people are needed, or the next reward model and policy are there.

    Args:
        recipe: Resolved, as the first round has it.
        store: Where all steps are found and published.
        view: Is told what happens.
        say: Prints a line.
        wait: For other processes that run the same step.

    Returns:
        The round at which it ends: waiting (`rank`), or, once a new policy was trained, before its answers are sampled (`sample`).

    Raises:
        DataError, StoreError, StageFailed, StoppedAfterStage: With their exit codes.
    """
    trained, heard = False, set[str]()
    while True:
        *before, found = walk(recipe, store)
        for kept in (each.kept for each in before if each.kept and each.kept not in heard):
            heard.add(kept)
            say(kept)
        if found.step == "train":
            for older, newer, model in find_replaced(store, [each.rankings for each in before if each.rankings]):
                anew = f"what came after begins anew, with new answers to rank; to go on as before: `rlhf rm {newer.ref}`"
                say(f"{newer.ref} takes the place of {older.ref}, from which {model.ref} learnt: {anew}")
            say(f"round {found.number}: reward model and policy" if found.number > 1 else f"round {found.number}: the first policy")
            run(found.recipe, store, selection_of(found.recipe), view, wait=wait)
            trained = found.number > 1
        elif found.step == "sample" and trained:
            return found
        elif found.step == "sample":
            say(f"round {found.number}: answers")
            if recipe.sample.which != "train":
                told = (
                    "held-out prompts are ranked, and the reward model learns from them: its scores of held-out answers will look too good"
                )
                say(f"sample.which = {recipe.sample.which}: {told}; needed: train")
            if lacks_chooser(found.recipe):
                untold = "there is no reward model yet that could choose; this round's answers are drawn at random"
                say(f"sample.choose = {recipe.sample.choose}: {untold}")
            policies = list_policies(found.recipe, found.decisions)
            sample(found.sampling or found.recipe, store, policies, view, wait=wait)
        elif found.step == "publish":
            for line in tell_published(publish_round(found, store)):
                say(line)
        else:
            return found


def publish_round(found: Round, store: Store) -> PublishedRankings:
    """Publish the rankings of a round, by whomever they are, with pseudonyms."""
    assert found.answers is not None
    place = find_answers(store, found.answers.ref)
    journal = Journal(place.journal)
    summary = summarise(journal.list_of(place.sets), place.sets)
    named = tuple(replace(each, name=journal.name_secretly(each.name)) for each in summary.annotators)
    share = settings_of(found.recipe).held_out
    return publish_rankings(store, place, journal, replace(summary, annotators=named), "all", False, share)


def tell(found: Round, command: str) -> str:
    """Say in a line where a round stands, and what comes next.

    Args:
        found: The round.
        command: That goes on with it.
    """
    begin, kept = f"round {found.number}", f"; {found.kept}" if found.kept else ""
    if found.step == "rank" and found.answers is not None:
        ref = found.answers.ref
        if found.lack:
            other = f"`rlhf rank {ref} -a NAME` with another name has what was skipped ranked by somebody else, `u` there takes back"
            return (
                f"{begin} waits for people: all {found.sets:,} answer sets of {ref} are judged, but {found.lack}; {other}; then `{command}`"
            )
        done = f"{found.ranked:,} of {found.sets:,} answer sets of {ref} are ranked"
        share = settings_of(found.recipe).held_out
        publish = f"rlhf rankings {ref} --publish" + (
            f" --held-out {share:g}" if share != RoundSettings.model_validate({}).held_out else ""
        )
        early = f"; or go on with these: `{publish}`" if found.ranked > 1 else ""  # one to train on, one to hold out
        return f"{begin} waits for people: {done}; `rlhf rank {ref}`, then `{command}`{early}{kept}"
    if found.step == "sample" and found.policy is not None:
        return f"{begin}: {found.policy.ref} is there; `{command}` samples its answers for people to rank{_tell_choice(found)}"
    todo = {"publish": "all answers are ranked: publish the rankings", "train": "train", "sample": "sample answers", "next": "done"}
    return f"{begin}: {todo.get(found.step, found.step)}"


def _tell_choice(found: Round) -> str:
    """Say how a round's answers will be chosen; empty where they are drawn at random, as the recipe says."""
    settings = found.recipe.sample
    if settings.choose == "random":
        return ""
    if lacks_chooser(found.recipe):
        return ", at random, as there is no reward model yet"
    model = find_reward_model(found)
    by = settings.reward_model or (model.ref if model else "its reward model")
    return f", chosen by {settings.choose} with {by}, {settings.random_share:.0%} at random"
