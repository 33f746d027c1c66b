"""The second reward model that judges (`evaluate.judge.reward_model`): where it lies, and what stands for it in a cache key."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.base_model import identify_model
from pipeline.recipe.base_files import pin_revision
from pipeline.recipe.paths import names_artifact
from pipeline.recipe.schema import Recipe
from pipeline.store.store import Store

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


def find_judge_model(recipe: Recipe, store_root: Path) -> JudgeModel | None:
    """Find the reward model that a recipe names as judge; None: it names none.

    Raises:
        ConfigError: It is an artifact that is not there, or not of a reward model (exit 2).
        StoreError: A file of it cannot be read (exit 5), or is not there (exit 4).
    """
    judge = recipe.evaluate.judge if recipe.evaluate else None
    if judge is None or judge.reward_model is None:
        return None
    place, named = recipe.place(_KEY), judge.reward_model
    if not names_artifact(named):
        revision = pin_revision(named, judge.revision)
        return JudgeModel(named, revision, identify_model(named, revision))
    try:
        artifact = Store(store_root).get(named)
    except StoreError as error:
        raise ConfigError([f"{place}: {_KEY}: {error.message}"]) from error
    if artifact.kind != "rm":
        raise ConfigError([f"{place}: {_KEY}: found {artifact.ref}, which is no reward model; needed one; give rm@v1 or the like"])
    return JudgeModel(str(artifact.opened_path), None, f"artifact:{artifact.content_id}")
