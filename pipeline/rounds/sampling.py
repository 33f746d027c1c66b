"""Policies, named by ref, and prompts -> an artifact of answers for people to rank, by the stage `sample`; reused where it is there."""

import difflib
import json
from collections.abc import Iterator, Sequence

from pipeline.errors import StoreError
from pipeline.foreseen import require_meeting, warn_of_threads
from pipeline.inputs.prepare import Inputs, prepare
from pipeline.inputs.slices import slice_config
from pipeline.inputs.start import find_named
from pipeline.plan import Decision, decide
from pipeline.recipe.load import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.run import Outcome, View, run_stage
from pipeline.store.artifact import Artifact
from pipeline.store.compare import changed_leaves, describe_change, flatten
from pipeline.store.disk import expand_home
from pipeline.store.manifest import CONFIG_FILE
from pipeline.store.parts import require_places
from pipeline.store.store import Store
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION, RANKINGS_KIND, STAGES, StageName

_STAGE: StageName = "sample"


def load_own_recipe(artifact: Artifact, overrides: Sequence[str], options: Sequence[tuple[str, str]]) -> Recipe:
    """Load the recipe that an artifact was made with, to sample from it: its prompts, limits and machine.

    Raises:
        StoreError: It has none, as it was imported without one.
    """
    path = artifact.path / CONFIG_FILE
    if not path.is_file():
        found = f"{artifact.ref} does not say with which recipe it was made, as it was imported"
        raise StoreError(f"{found}; its prompts, limits and machine are needed; give --recipe", EXIT_USAGE)
    return load_recipe(path, overrides, [_STAGE], to_run=True, options=options)


def override_prompts(asked: str) -> list[str]:
    """Say by overrides which prompts are answered: those of the recipe (`train`, `held-out`), or all of a file.

    Raises:
        StoreError: It is neither (exit 2).
    """
    if asked in ("train", "held-out"):
        return [f"sample.which={asked.replace('-', '_')}"]
    path = expand_home(asked).absolute()
    if not path.exists():
        near = difflib.get_close_matches(asked.replace("_", "-"), ("train", "held-out"), n=1)
        todo = f"did you mean {near[0]}?" if near else "check the path"
        raise StoreError(f"--prompts: found no file {path}; needed a file of prompts, train or held-out; {todo}", EXIT_USAGE)
    # Both sides are the file, so that nothing of it is held out.
    return ["sample.which=train", *(f"data.prompts.{split}={{path: {json.dumps(str(path))}}}" for split in ("train", "eval"))]


def find_chooser(recipe: Recipe, store: Store, policies: Sequence[Artifact], *, verify: bool) -> Artifact | None:
    """Find the reward model that chooses what people are shown: the one that is named, else the one that the policies learnt from.

    Args:
        recipe: Resolved; its `sample` block counts.
        store: Where it lies.
        policies: Who answers.
        verify: Compare each byte of it.

    Returns:
        It; None where nothing is chosen.

    Raises:
        StoreError: There is none, or another kind of artifact (exit 2); it is withdrawn or damaged (exit 3).
    """
    if recipe.sample.choose == "random":
        return None
    if recipe.sample.reward_model:
        return find_named_chooser(recipe, store, verify=verify)
    learnt_from = [parent for policy in policies for parent in policy.manifest.parents if parent.kind == "rm"]
    place = f"{recipe.place('sample.choose')}: sample.choose"
    if not learnt_from:
        found = f"found deltaucb, and {' and '.join(policy.ref for policy in policies)} learnt from no reward model"
        todo = "needed one that chooses; set sample.reward_model (--reward-model rm@v1), or sample.choose: random"
        raise StoreError(f"{place}: {found}; {todo}", EXIT_USAGE)
    chooser = _get_chooser(learnt_from[0].ref, place, store, verify=verify)
    if chooser.content_id != learnt_from[0].content_id:
        found = f"found {chooser.ref} with another content than that from which the policy learnt"
        raise StoreError(f"{place}: {found}; needed the same; restore that version, or set sample.reward_model", EXIT_VERIFICATION)
    return chooser


def find_named_chooser(recipe: Recipe, store: Store, *, verify: bool) -> Artifact | None:
    """Find the reward model that `sample.reward_model` names; None where it names none. As `find_chooser` raises."""
    named, key = recipe.sample.reward_model, "sample.reward_model"
    return _get_chooser(named, f"{recipe.place(key)}: {key}", store, verify=verify) if named else None


def _get_chooser(ref: str, place: str, store: Store, *, verify: bool) -> Artifact:
    artifact = find_named(store, ref, place, verify=verify)
    if artifact.kind != "rm":
        raise StoreError(f"{place}: found {artifact.ref}, which is no reward model; needed one; give rm@v1 or the like", EXIT_USAGE)
    return artifact


def _list_parents(recipe: Recipe, store: Store, policies: Sequence[Artifact], *, verify: bool) -> dict[str, Artifact]:
    chooser = find_chooser(recipe, store, policies, verify=verify)
    return {artifact.ref: artifact for artifact in (*policies, *([chooser] if chooser else []))}


def _tell_other_comparisons(chooser: Artifact, inputs: Inputs) -> str:
    """Say that a reward model did not learn from the comparisons by which its uncertainty will be measured; empty where it did."""
    own = {name: text for name, text in chooser.manifest.data.items() if name.startswith("comparisons.")}
    read = dict(flatten({"comparisons": inputs.readings["comparisons"].fingerprints}))
    other = f"data.comparisons of this recipe are not those from which {chooser.ref} learnt"
    return f"{other}: how unsure it is, is measured by these" if own != read else ""


def decide_answers(recipe: Recipe, store: Store, policies: Sequence[Artifact]) -> Decision:
    """Say whether these answers are there already, or why they are not; the store stays as it is.

    Args:
        recipe: Resolved; its `sample` block and prompts count.
        store: Where they would be.
        policies: Who answers.
    """
    inputs = prepare(recipe, store.root, [_STAGE], trust_notes=True, keep_notes=False)
    return decide(_STAGE, recipe, inputs, _list_parents(recipe, store, policies, verify=False), store)


def find_alike(recipe: Recipe, store: Store, policies: Sequence[Artifact]) -> Iterator[tuple[Artifact, list[str]]]:
    """Find answers that only `sample` tells from those that a recipe would sample: of the same policies, to the same part of the prompts.

    Yields:
        (answers, how their settings differ), the newest first; withdrawn ones are left out.
    """
    inputs = prepare(recipe, store.root, [_STAGE], trust_notes=True, keep_notes=False)
    config, prompts = slice_config(_STAGE, recipe, inputs), dict(flatten({"prompts": inputs.readings["prompts"].fingerprints}))
    answer, apart = {policy.content_id for policy in policies}, ("which", "skip_prompts")
    for artifact in store.newest_first(STAGES[_STAGE].kind):
        old = artifact.manifest
        parents = {parent.content_id for parent in old.parents if parent.kind not in ("rm", RANKINGS_KIND)}
        same = parents == answer and {name: text for name, text in old.data.items() if name in prompts} == prompts
        same = same and {**old.config, _STAGE: None} == {**config, _STAGE: None}
        if same and all(old.config[_STAGE].get(name) == config[_STAGE][name] for name in apart) and not store.find_withdrawal(artifact):
            yield artifact, [describe_change(*change) for change in changed_leaves(old.config, config)]


def sample(recipe: Recipe, store: Store, policies: Sequence[Artifact], view: View, *, force: bool = False, wait: bool = True) -> Outcome:
    """Have policies answer prompts, or find the answers that they gave to the same ones.

    Args:
        recipe: Resolved; see `decide_answers`.
        store: Where they are found and published.
        policies: Who answers, the first one most where they do not divide.
        view: Is told what happens.
        force: Sample anew even where they are there.
        wait: For another process that samples the same.

    Raises:
        DataError, StoreError, StageFailed, StoppedAfterStage: With their exit codes.
    """
    store.reap()
    parents = _list_parents(recipe, store, policies, verify=True)
    inputs = prepare(recipe, store.root, [_STAGE], told=view.reading)
    decision = decide(_STAGE, recipe, inputs, parents, store, force=force)
    if decision.artifact is not None:
        view.stage_reused(decision)
        return Outcome(_STAGE, decision.artifact, True, 0.0)
    chooser = next((artifact for artifact in parents.values() if artifact.kind == "rm"), None)
    if chooser is not None and (told := _tell_other_comparisons(chooser, inputs)):
        view.note(told)
    require_places(store.root, [STAGES[_STAGE].kind])
    require_meeting(recipe)
    for message in warn_of_threads(recipe):
        view.note(message)
    return run_stage(recipe, inputs, decision, store, view, fresh=force, wait=wait)
