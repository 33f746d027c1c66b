"""The second reward model that judges (`evaluate.judge.reward_model`): where it lies, and what stands for it in a cache key."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.base_model import identify_model
from pipeline.recipe.base_files import pin_revision
from pipeline.recipe.paths import names_artifact
from pipeline.recipe.schema import Recipe
from pipeline.store.store import Store
from stages.spec import EXIT_VERIFICATION

_KEY = "evaluate.judge.reward_model"


@dataclass(frozen=True)
class JudgeModel:
    """A reward model that PPO did not learn from.

    Args:
        path: Its directory, or hub id.
        revision: Of a hub's model: the commit, where it can be told.
        identity: What it is, by content.
    """

    path: str
    revision: str | None
    identity: str


def find_judge_model(recipe: Recipe, store_root: Path, *, verify: bool) -> JudgeModel | None:
    """Find the reward model that a recipe names as judge; None: it names none. In a run each byte of an artifact is compared.

    Raises:
        ConfigError: It is an artifact that is not there, or not of a reward model (exit 2).
        StoreError: A file of it cannot be read (exit 5), or is not there (exit 4); an artifact is withdrawn or damaged (exit 3).
    """
    judge = recipe.evaluate.judge if recipe.evaluate else None
    if judge is None or judge.reward_model is None:
        return None
    place, named = recipe.place(_KEY), judge.reward_model
    if not names_artifact(named):
        revision = pin_revision(named, judge.revision)
        return JudgeModel(named, revision, identify_model(named, revision))
    store = Store(store_root)
    try:
        artifact = store.get(named)
    except StoreError as error:
        raise ConfigError([f"{place}: {_KEY}: {error.message}"]) from error
    if artifact.kind != "rm":
        raise ConfigError([f"{place}: {_KEY}: found {artifact.ref}, which is no reward model; needed one; give rm@v1 or the like"])
    if reason := store.find_withdrawal(artifact):
        raise StoreError(f"{place}: {_KEY}: {artifact.ref} is withdrawn: {reason}; give another", EXIT_VERIFICATION)
    if verify:
        store.require_verified(artifact.ref)
    return JudgeModel(str(artifact.opened_path), None, f"artifact:{artifact.content_id}")
