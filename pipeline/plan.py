"""Recipe + data + store -> what will run and why, what is reused.

inputs of a stage -> cache key -> an artifact with that key is reused; otherwise the differences to the newest one are the reasons
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pipeline.errors import StoreError
from pipeline.inputs.demo import demo_directory, demo_seeds
from pipeline.inputs.idle import tell_idle
from pipeline.inputs.mixing import FROM
from pipeline.inputs.prepare import Inputs, prepare
from pipeline.inputs.slices import slice_config
from pipeline.inputs.start import require_same_sft
from pipeline.recipe.schema import Recipe
from pipeline.runs.unfinished import describe_unfinished
from pipeline.store.artifact import Artifact
from pipeline.store.compare import changed_leaves, describe_change
from pipeline.store.store import Store
from stages.spec import EXIT_MISSING, RANKINGS_KIND, RUN_STAGES, STAGES, StageName, with_ancestors

_REASONS_SHOWN = 4
_KEY_CHARS = 16


@dataclass(frozen=True)
class Selection:
    """Which stages to run, and which must be there already.

    Args:
        run: Stages that may run, in order; one that the recipe does not have is passed over.
        force: Make new artifacts even where one could be reused.
    """

    run: tuple[StageName, ...] = RUN_STAGES
    force: bool = False

    def needed(self, recipe: Recipe) -> tuple[StageName, ...]:
        """Return the stages of a recipe that may run, and all that they descend from, in order."""
        return tuple(stage for stage in with_ancestors(self.run) if stage in recipe.stages)


@dataclass(frozen=True)
class Decision:
    """What happens to one stage.

    Args:
        action: `reuse`; `run`; or `depends`: on an earlier stage that will run, whose content is not known yet.
        artifact: What is reused.
        reasons: Why it runs, each a phrase after "because"; or what it depends on.
        key: Cache key, once all parents are known.
        config: The slice of the configuration that is in the key.
        parents: Stage -> artifact.
        unfinished: What becomes of checkpoints that are left of this stage; empty where there are none.
        idle: What was changed since the artifact was made that is reused, and why it is all the same.
    """

    stage: StageName
    action: Literal["reuse", "run", "depends"]
    artifact: Artifact | None = None
    reasons: list[str] = field(default_factory=list[str])
    key: str | None = None
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    parents: dict[str, Artifact] = field(default_factory=dict[str, Artifact])
    unfinished: str = ""
    idle: list[str] = field(default_factory=list[str])

    @property
    def run_name(self) -> str:
        """Name of its run: by the cache key, so that an unfinished run of the same inputs is found again."""
        assert self.key is not None
        return _name_run(self.stage, self.key)

    @property
    def why(self) -> str:
        """The reasons on one line; of many, the first."""
        more = len(self.reasons) - _REASONS_SHOWN
        shown = [*self.reasons[:_REASONS_SHOWN], *([f"and {more} more"] if more > 0 else []), self.unfinished]
        return "; ".join(filter(None, shown))


def decide(
    stage: StageName, recipe: Recipe, inputs: Inputs, parents: Mapping[str, Artifact], store: Store, *, force: bool = False
) -> Decision:
    """Decide what happens to a stage whose parents are known.

    Args:
        stage: The stage.
        recipe: Resolved recipe.
        inputs: As `prepare` returns them.
        parents: Stage -> artifact, at least those that the stage reads; of a stage that is asked for, ref -> artifact.
        store: Where artifacts are looked up.
        force: Run it even where an artifact has its key.
    """
    own_parents: dict[str, Artifact] = dict(parents) if STAGES[stage].asked_for else {kind: parents[kind] for kind in recipe.parents(stage)}
    if inputs.start is not None and "sft" in own_parents:  # of the reward model too, which trains before
        require_same_sft(recipe, inputs.start, own_parents["sft"])
    if stage == "ppo" and inputs.start is not None:
        own_parents["ppo"] = inputs.start
    config = slice_config(stage, recipe, inputs)
    data = inputs.fingerprints(stage, recipe)
    content = {kind: parent.content_id for kind, parent in own_parents.items()}
    if STAGES[stage].asked_for and list(content) != sorted(content):
        content["order"] = " ".join(content)  # the first policy answers most; keys of those in alphabetical order stay valid
    key = hash_inputs(stage, config, data, content)
    found = store.find_by_cache_key(STAGES[stage].kind, key)
    if found and not force:
        return Decision(stage, "reuse", found, [], key, config, own_parents, idle=tell_idle(stage, recipe, found))
    if found:
        reasons = ["--force was given"]
    else:
        lost = [
            f"{ref}, which had these inputs, is gone without `rlhf rm`"
            for ref, entry in store.find_lost().items()
            if entry.cache_key == key
        ]
        reasons = lost or list(_differences(stage, config, data, own_parents, store)) or ["no artifact has these inputs yet"]
        reasons = [*_find_withdrawn(stage, store, key), *reasons]
    unfinished = "" if force else describe_unfinished(store.root, stage, _name_run(stage, key), config[stage])
    return Decision(stage, "run", None, reasons, key, config, own_parents, unfinished)


def plan(recipe: Recipe, store: Store, selection: Selection) -> list[Decision]:
    """Decide all needed stages as far as that can be told before anything runs. Nothing is written.

    Raises:
        DataError: With every bad line.
        StoreError: A stage that is needed but not selected has no artifact (exit 4).
    """
    if any(not demo_directory(store.root, seed).is_dir() for seed in demo_seeds(recipe)):
        # Nothing was made from a demo that is not there, and it need not be generated to know that.
        waiting = [Decision(stage, "run", reasons=[_why_without_demo(stage, store)]) for stage in selection.needed(recipe)]
        if waiting[0].stage not in selection.run:
            raise missing_artifact(waiting[0], selection)
        return [decision for decision in waiting if decision.stage in selection.run]
    inputs = prepare(recipe, store.root, selection.needed(recipe), trust_notes=True, keep_notes=False)
    known: dict[str, Artifact] = {}
    decisions: list[Decision] = []
    for stage in selection.needed(recipe):
        force = selection.force and stage in selection.run
        waiting = [kind for kind in recipe.parents(stage) if kind not in known]
        if waiting:
            decisions.append(_decide_waiting(stage, waiting, recipe, inputs, store, force=force))
            continue
        decision = decide(stage, recipe, inputs, known, store, force=force)
        if decision.artifact:
            known[stage] = decision.artifact
        elif stage not in selection.run:
            raise missing_artifact(decision, selection)
        decisions.append(decision)
    return decisions


def _why_without_demo(stage: StageName, store: Store) -> str:
    return "the demo that it names is not made yet" if any(store.newest_first(STAGES[stage].kind)) else "no artifact yet"


def missing_artifact(decision: Decision, selection: Selection) -> StoreError:
    """Say that a stage outside the selection has nothing to reuse."""
    stage, wanted = decision.stage, selection.run[-1]
    message = f"{stage}: nothing to reuse, because {decision.why}; {wanted} needs it; run `rlhf run --until {wanted}`"
    return StoreError(message, EXIT_MISSING)


def _decide_waiting(stage: StageName, waiting: Sequence[str], recipe: Recipe, inputs: Inputs, store: Store, *, force: bool) -> Decision:
    """Decide a stage whose parents will run: it surely runs when something else differs too, else it depends on what they become."""
    config = slice_config(stage, recipe, inputs)
    data = inputs.fingerprints(stage, recipe)
    parents = dict.fromkeys(recipe.parents(stage)) | ({"ppo": inputs.start} if stage == "ppo" and inputs.start else {})
    reasons = [*_find_withdrawn(stage, store), *_differences(stage, config, data, parents, store)]
    reasons = ["--force was given"] if force else reasons
    if reasons:
        return Decision(stage, "run", reasons=reasons, config=config)
    return Decision(
        stage, "depends", reasons=[f"{' and '.join(waiting)} will run; it is reused if the same weights come out"], config=config
    )


def _find_withdrawn(stage: StageName, store: Store, key: str | None = None) -> list[str]:
    """Say that the artifact that would be reused, or else the newest one, is withdrawn."""
    if not store.has_withdrawals():
        return []
    same = (artifact for artifact in _made(stage, store) if key is not None and artifact.manifest.cache_key == key)
    wanted = next(same, None) or next(_made(stage, store), None)
    why = store.find_withdrawal(wanted) if wanted else ""
    return [f"{wanted.ref} is withdrawn: {why}"] if wanted and why else []


def _made(stage: StageName, store: Store) -> Iterator[Artifact]:
    """Yield the artifacts that the stage made, the newest first; imported ones were made otherwise."""
    return (artifact for artifact in store.newest_first(STAGES[stage].kind) if artifact.manifest.imported is None)


def hash_inputs(stage: StageName, config: Mapping[str, Any], data: Mapping[str, Any], content: Mapping[str, str]) -> str:
    """Hash all that decides a stage's content into its cache key."""
    everything = {"stage": stage, "config": config, "data": data, "parents": content}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _differences(
    stage: StageName, config: dict[str, Any], data: dict[str, dict[str, str]], parents: Mapping[str, Artifact | None], store: Store
) -> Iterator[str]:
    """Say how the inputs differ from those of the newest artifact; of a parent that is None only whether there was one."""
    newest = next(_made(stage, store), None)
    if newest is None:
        yield "no artifact yet"
        return
    manifest = newest.manifest
    for kind in sorted(
        {name.partition(".")[0] for name, *_ in changed_leaves(manifest.data, data)}
    ):  # first: of many reasons few are shown
        yield f"data.{kind} changed{_name_sources(kind, manifest.data, data.get(kind, {}))}"
    yield from (describe_change(*change) for change in changed_leaves(manifest.config, config))
    named = STAGES[stage].asked_for
    old_parents = {parent.ref if named else parent.kind: parent for parent in manifest.parents if parent.kind != RANKINGS_KIND}
    new_parents = parents if named else {STAGES[cast("StageName", maker)].kind: parent for maker, parent in parents.items()}
    for kind, parent in new_parents.items():
        before = old_parents.get(kind)
        if before is None or (parent is not None and before.content_id != parent.content_id):
            yield f"{_name_parent(stage, kind)} changed {before.ref if before else 'none'} -> {parent.ref if parent else 'a new one'}"
    gone = (kind for kind in old_parents if kind not in new_parents)
    yield from (f"{_name_parent(stage, kind)} changed {old_parents[kind].ref} -> none" for kind in gone)


def _name_parent(stage: StageName, kind: str) -> str:
    """Name what a stage reads; a policy that PPO reads is where it begins."""
    return "ppo.start" if stage == "ppo" and kind == STAGES["ppo"].kind else kind


def _name_sources(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Say which of several sources came, went or changed: ` (rankings@v2 added)`; a single one before may be the first of several now."""
    prefix = f"{kind}.{FROM}"
    before = {name.removeprefix(prefix): content for name, content in old.items() if name.startswith(prefix)}
    after = {name.removeprefix(FROM): content for name, content in new.items() if name.startswith(FROM)}
    single = None if before else old.get(f"{kind}.train")
    said = [f"{name} added" for name, content in after.items() if name not in before and content.partition(",")[0] != single]
    said += [f"{name} removed" for name in before if name not in after]
    said += [f"{name} changed" for name, content in after.items() if name in before and before[name] != content]
    return f" ({', '.join(said)})" if said and after else ""


def _name_run(stage: StageName, key: str) -> str:
    return f"{stage}-{key[:_KEY_CHARS]}"
