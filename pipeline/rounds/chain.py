"""The rounds of a recipe, as far as they are in the store: nothing is noted of them, each step is found by what it was made from.

policy n -> answers n (sampled) -> judgements (people) -> rankings n -> reward model n + 1 from SFT, on all rankings so far -> policy n + 1

A recipe without comparisons begins with the SFT model as its first policy, as there is nothing to learn a reward from yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pipeline.plan import Decision, Selection, plan
from pipeline.ranking.journal import Journal
from pipeline.ranking.place import find_answers, find_journal
from pipeline.recipe.schema import Recipe, RoundSettings
from pipeline.recipe.sources import ComparisonSource, ComparisonSplits, PartSource
from pipeline.rounds.publish import find_lack
from pipeline.rounds.sampling import decide_answers, find_alike, find_named_chooser
from pipeline.store.artifact import Artifact
from pipeline.store.store import Store
from stages.sample_settings import CHOOSING, SampleSettings
from stages.spec import RANKINGS_KIND, STAGES, StageName

Step = Literal["train", "sample", "rank", "publish", "next"]


@dataclass(frozen=True)
class Round:
    """One round, as far as it is.

    Args:
        number: From 1.
        recipe: With the rankings of the rounds before.
        step: What comes next; `next`: it is done, the next round begins with its rankings.
        decisions: What becomes of the stages up to its policy.
        policy: Who answers.
        answers: What it said.
        ranked: How many answer sets somebody has judged.
        sets: How many there are.
        rankings: What was published of them.
        lack: Why what was said of them cannot be published, though all are judged: people have to rank more.
        sampling: The recipe with which its answers are sampled: it says which part of the prompts.
        kept: Why its answers stand, though `sample` now says otherwise.
    """

    number: int
    recipe: Recipe
    step: Step
    decisions: list[Decision] = field(default_factory=list[Decision])
    policy: Artifact | None = None
    answers: Artifact | None = None
    ranked: int = 0
    sets: int = 0
    rankings: Artifact | None = None
    lack: str = ""
    sampling: Recipe | None = None
    kept: str = ""


def settings_of(recipe: Recipe) -> RoundSettings:
    """Return the block `rounds`, or its defaults."""
    return recipe.rounds or RoundSettings.model_validate({})


def walk(recipe: Recipe, store: Store) -> Iterator[Round]:
    """Yield the rounds that are done, and last the one that is not; nothing is written.

    Raises:
        StoreError: The reward model that is to choose answers is not there: before anything trains.
    """
    find_named_chooser(recipe, store, verify=False)
    rankings: list[Artifact] = []
    policy: Artifact | None = None
    skipped = recipe.sample.skip_prompts
    while True:
        found = _look(_begin_at(recipe, policy), store, rankings, skipped)
        yield found
        if found.rankings is None or found.answers is None:
            return
        rankings.append(found.rankings)
        policy = found.policy
        taken = found.answers.manifest.config["sample"]
        skipped += taken.get("candidate_prompts") or taken["prompts"] or 0


def selection_of(recipe: Recipe) -> Selection:
    """Say which stages make a round's policy, and test it: all, but without comparisons those up to SFT."""
    return Selection() if recipe.data.comparisons else Selection(("pretrain", "sft"))


def policy_stage(recipe: Recipe) -> StageName:
    """Say which stage makes a round's policy."""
    return "ppo" if recipe.data.comparisons else "sft"


def add_rankings(recipe: Recipe, refs: list[str]) -> Recipe:
    """Put published rankings behind the sources of comparisons that a recipe has."""
    if not refs:
        return recipe
    weight, splits = settings_of(recipe).weight, recipe.data.comparisons
    own: list[PartSource] = []
    if splits is not None:
        single = splits.train
        named = {name: getattr(single, name) for name in ("path", "split", "subset", "revision", "format", "columns")}
        own = single.parts or [PartSource.model_validate(named)]
    parts = [*own, *(PartSource.model_validate({"ref": ref, "weight": weight}) for ref in refs)]
    mixed = ComparisonSplits(train=ComparisonSource.model_validate({"parts": parts}), eval=splits.eval if splits else None)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"comparisons": mixed})})


def sampling_recipe(recipe: Recipe, skipped: int) -> Recipe:
    """Say what a round samples: the prompts after those of the rounds before it, at random while no reward model can choose."""
    chosen = {"choose": "random", **{name: SampleSettings.model_fields[name].default for name in CHOOSING}} if lacks_chooser(recipe) else {}
    return recipe.model_copy(update={"sample": recipe.sample.model_copy(update={"skip_prompts": skipped, **chosen})})


def lacks_chooser(recipe: Recipe) -> bool:
    """Whether a round's answers cannot be chosen though they should be, as no reward model is there yet."""
    return recipe.sample.choose != "random" and recipe.data.comparisons is None


def list_policies(recipe: Recipe, decisions: list[Decision]) -> list[Artifact]:
    """List who answers in a round: its policy, and with `rounds.with_sft` the SFT model."""
    made = {decision.stage: decision.artifact for decision in decisions}
    stages: list[StageName] = [policy_stage(recipe), *(["sft"] if settings_of(recipe).with_sft else [])]
    return [artifact for stage in dict.fromkeys(stages) if (artifact := made.get(stage)) is not None]


def find_reward_model(found: Round) -> Artifact | None:
    """Find the reward model of a round, where it has one."""
    return next((decision.artifact for decision in found.decisions if decision.stage == "rm"), None)


def find_rankings(store: Store, answers: Artifact) -> Artifact | None:
    """Find the newest rankings of answers that stand."""
    for artifact in reversed(store.list(RANKINGS_KIND)):
        if any(parent.content_id == answers.content_id for parent in artifact.manifest.parents) and not store.find_withdrawal(artifact):
            return artifact
    return None


def find_replaced(store: Store, rankings: list[Artifact]) -> list[tuple[Artifact, Artifact, Artifact]]:
    """Find rankings that newer ones of the same answers replace, though a reward model learnt from them: what came after begins anew.

    Returns:
        (the older ones, the newer ones, the newest reward model that learnt from the older ones and not from the newer) each.
    """
    models = [({parent.content_id for parent in model.manifest.parents}, model) for model in reversed(store.list("rm"))]
    found: list[tuple[Artifact, Artifact, Artifact]] = []
    for newer in rankings:
        answers = {parent.content_id for parent in newer.manifest.parents}
        for older in store.list(RANKINGS_KIND):
            if older.version < newer.version and answers & {parent.content_id for parent in older.manifest.parents}:
                learnt = (model for parents, model in models if older.content_id in parents and newer.content_id not in parents)
                found += [(older, newer, model) for model in learnt][:1]
    return found


def _begin_at(recipe: Recipe, policy: Artifact | None) -> Recipe:
    """Have PPO begin at the last round's policy, with `rounds.start: policy`; without comparisons the first policy is the SFT model."""
    if settings_of(recipe).start == "sft" or policy is None or policy.kind != STAGES["ppo"].kind:
        return recipe
    return recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"start": policy.ref})})


def _look(base: Recipe, store: Store, rankings: list[Artifact], skipped: int) -> Round:
    number, recipe = len(rankings) + 1, add_rankings(base, [artifact.ref for artifact in rankings])
    decisions = plan(recipe, store, selection_of(recipe))
    policies = list_policies(recipe, decisions)
    if not policies or any(decision.action != "reuse" for decision in decisions):
        return Round(number, recipe, "train", decisions)
    sampling, kept = sampling_recipe(recipe, skipped), ""
    answers = decide_answers(sampling, store, policies).artifact
    if answers is None:  # other settings count from the next round on: what people have ranked is not sampled anew
        answers, kept = _find_ranked(sampling, store, policies)
    if answers is None:
        return Round(number, recipe, "sample", decisions, policies[0], sampling=sampling)
    if found := find_rankings(store, answers):
        return Round(number, recipe, "next", decisions, policies[0], answers, rankings=found, sampling=sampling, kept=kept)
    place = find_answers(store, answers.ref)
    judgements = Journal(place.journal).list_of(place.sets)
    judged = {each.item for each in judgements}
    lack = find_lack(place, judgements) if len(judged) == len(place.sets) else ""
    step: Step = "publish" if len(judged) == len(place.sets) and not lack else "rank"
    return Round(
        number, recipe, step, decisions, policies[0], answers, len(judged), len(place.sets), lack=lack, sampling=sampling, kept=kept
    )


def _find_ranked(sampling: Recipe, store: Store, policies: list[Artifact]) -> tuple[Artifact | None, str]:
    """Find answers of the same round that were sampled with other settings, of which somebody has judged some; and what is said of it."""
    for answers, changes in find_alike(sampling, store, policies):
        if find_rankings(store, answers) or Journal(find_journal(store, answers)).judgements:
            told = f"{answers.ref} are ranked, though {'; '.join(changes)}: they stay, and the new settings count from the next round on"
            return answers, told
    return None, ""
