"""An artifact that a recipe names for a stage to begin with, such as the policy at which PPO begins in place of the SFT model."""

from pathlib import Path

from pipeline.errors import ConfigError, StoreError
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact
from pipeline.store.store import Store
from stages.blocks import LoRASettings
from stages.spec import EXIT_VERIFICATION, STAGES

_KEY = "ppo.start"
_MAY_DIFFER = {"merge", "dropout"}  # dropout is off in PPO


def find_start(recipe: Recipe, store_root: Path, *, verify: bool) -> Artifact | None:
    """Find the policy at which a recipe's PPO begins; None: at the SFT model. In a run each byte is compared.

    Raises:
        ConfigError: It has other adapters than ppo.lora (exit 2).
        StoreError: It is not there (exit 4), damaged or withdrawn (exit 3).
    """
    if recipe.ppo.start is None:
        return None
    place, store = recipe.place(_KEY), Store(store_root)
    found = find_named(store, recipe.ppo.start, f"{place}: {_KEY}", verify=verify)
    lora = found.manifest.config.get("ppo", {}).get("lora")
    own, needed = _identify(LoRASettings.model_validate(lora) if lora else None), _identify(recipe.ppo.lora)
    if own != needed:
        what = f"found {found.ref}, made with ppo.lora = {own or 'null'}, needed one made with {needed or 'null'}, as the adapter goes on"
        raise ConfigError([f"{place}: {_KEY}: {what}; give another, or change ppo.lora"])
    return found


def require_same_sft(recipe: Recipe, start: Artifact, sft: Artifact) -> None:
    """Refuse a policy that learnt from another SFT model than the one to which the KL penalty is.

    Raises:
        StoreError: It did (exit 3).
    """
    of = next((parent for parent in start.manifest.parents if parent.kind == STAGES["sft"].kind), None)
    if of is None or of.content_id != sft.content_id:
        found = f"found {start.ref}, which learnt from {of.ref if of else 'no SFT model'}; needed one of {sft.ref}, the reference"
        raise StoreError(f"{recipe.place(_KEY)}: {_KEY}: {found}; give one, or leave it away", EXIT_VERIFICATION)


def _identify(lora: LoRASettings | None) -> dict[str, object] | None:
    return lora.model_dump(mode="json", exclude=_MAY_DIFFER) if lora else None


def find_named(store: Store, ref: str, place: str, *, verify: bool, todo: str = "give another") -> Artifact:
    """Find it.

    Args:
        store: Where it lies.
        ref: As the recipe has it.
        place: File, line and key, with which an error begins.
        verify: Compare every byte of it, as a run does.
        todo: What to do about one that is withdrawn.

    Raises:
        StoreError: It is not there (exit 4), damaged or withdrawn (exit 3).
    """
    try:
        found = store.get(ref)
        if reason := store.find_withdrawal(found):
            raise StoreError(f"{found.ref} is withdrawn: {reason}; {todo}", EXIT_VERIFICATION)
        return store.require_verified(found.ref) if verify else found
    except StoreError as error:
        raise StoreError(f"{place}: {error.message}", error.exit_code) from error
