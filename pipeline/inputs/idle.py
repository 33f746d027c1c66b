"""What was changed in a recipe since an artifact was made that is reused all the same: told, as who changes a setting waits for its effect.

It is outside of the cache key on purpose: it acts on nothing as the other settings are, only says how a stage runs, or acts on files that
a stage leaves beside its weights.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from data.secrets import redact_values
from pipeline.inputs.slices import HOW_IT_RUNS, find_idle
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.store.compare import changed_leaves, describe_change, flatten
from pipeline.store.disk import read_bounded
from pipeline.store.manifest import CONFIG_FILE
from stages.spec import SAMPLES_FILE, StageName

_MAX_BYTES = 8 * 1024 * 1024


def tell_idle(stage: StageName, recipe: Recipe, artifact: Artifact) -> list[str]:
    """Say which changes of a recipe an artifact that is reused knows nothing of, a phrase each.

    Args:
        stage: Which one is reused.
        recipe: Resolved.
        artifact: What of it is reused; nothing is said where it does not hold the recipe that it was made with.
    """
    try:
        before: Any = json.loads(read_bounded(artifact.path / CONFIG_FILE, _MAX_BYTES))
        # As a recipe is written beside an artifact; a key that its version of rlhf did not know was not changed.
        after = cast("dict[str, Any]", redact_values(recipe.model_dump(mode="json")))
        return [*_tell_settings(stage, recipe, before[stage] or {}, after[stage]), *_tell_files(before, after, artifact)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _tell_settings(stage: StageName, recipe: Recipe, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    idle, known = find_idle(stage, recipe.settings(stage)), dict(flatten(before))
    for name, old, new in changed_leaves(before, after):
        block, _, last = name.rpartition(".")
        changed = describe_change(f"{stage}.{name}", old, new)
        if name not in known:
            continue
        if other := idle.get(name.partition(".")[0]):
            yield f"{changed}, which acts only with {other}"
        elif last in HOW_IT_RUNS[stage].get(block, ()):
            yield f"{changed}, which only says how it runs"


def _tell_files(before: Mapping[str, Any], after: Mapping[str, Any], artifact: Artifact) -> Iterator[str]:
    old, new = (block["data"].get("samples", "on") for block in (before, after))
    holds = any(entry.path == SAMPLES_FILE for entry in artifact.manifest.files)
    if old != new and (holds or old == "off"):
        acts = "acts on what is made from now on"
        kept = f"{artifact.ref} has its samples as they were made" if holds else f"{artifact.ref} has no samples"
        yield f"{describe_change('data.samples', old, new)}, which {acts}: {kept}; --force makes it anew"
    if after["private"] and not before.get("private", False):
        yield f"private is set, which acts on what is made from now on: the mode of {artifact.ref} stays; --force makes it anew"
