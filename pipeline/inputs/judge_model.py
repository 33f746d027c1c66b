"""The reward models that judge (`evaluate.judge`, `sft.judge`): where each lies, and what stands for it in a cache key."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.base_model import identify_model
from pipeline.recipe.base_files import pin_revision
from pipeline.recipe.paths import names_artifact
from pipeline.recipe.schema import Recipe
from pipeline.store.store import Store
from stages.evaluate_settings import EvaluateSettings, JudgeSettings
from stages.settings import SFTSettings, StageSettings
from stages.spec import EXIT_VERIFICATION, StageName


@dataclass(frozen=True)
class JudgeModel:
    """A reward model that PPO did not learn from.

    Args:
        path: Its directory, or hub id.
        revision: Of a hub's model: the commit, where it can be told.
        identity: What it is, by content.
        comparisons: The content hash of what it learnt from, where that is known.
    """

    path: str
    revision: str | None
    identity: str
    comparisons: str | None = None


def named_judge(settings: StageSettings) -> JudgeSettings | None:
    """Say who judges in a stage in place of the recipe's judge; None: nobody does."""
    if isinstance(settings, EvaluateSettings):
        return settings.judge
    return settings.chooser if isinstance(settings, SFTSettings) else None


def find_judge_model(recipe: Recipe, stage: StageName, store_root: Path, *, verify: bool) -> JudgeModel | None:
    """Find the reward model that judges in a stage; None: none does. In a run each byte of an artifact is compared.

    Raises:
        ConfigError: It is an artifact that is not there, or not of a reward model; or SFT's is whichever is the newest (exit 2).
        StoreError: A file of it cannot be read (exit 5), or is not there (exit 4); an artifact is withdrawn or damaged (exit 3).
    """
    judge = named_judge(recipe.settings(stage))
    if judge is None or judge.reward_model is None:
        return None
    key = f"{stage}.judge.reward_model"
    place, named = recipe.place(key), judge.reward_model
    if not names_artifact(named):
        revision = pin_revision(named, judge.revision)
        return JudgeModel(named, revision, identify_model(named, revision))
    if stage == "sft" and named == "rm":
        found = "found rm, the newest one, which each run may replace after SFT: the next run would train SFT anew"
        raise ConfigError([f"{place}: {key}: {found}; needed one that stays; give rm@v1 or the like"])
    store = Store(store_root)
    try:
        artifact = store.get(named)
    except StoreError as error:
        raise ConfigError([f"{place}: {key}: {error.message}"]) from error
    if artifact.kind != "rm":
        raise ConfigError([f"{place}: {key}: found {artifact.ref}, which is no reward model; needed one; give rm@v1 or the like"])
    if reason := store.find_withdrawal(artifact):
        raise StoreError(f"{place}: {key}: {artifact.ref} is withdrawn: {reason}; give another", EXIT_VERIFICATION)
    if verify:
        store.require_verified(artifact.ref)
    comparisons = artifact.manifest.data.get("comparisons.train")
    return JudgeModel(str(artifact.opened_path), None, f"artifact:{artifact.content_id}", comparisons)
