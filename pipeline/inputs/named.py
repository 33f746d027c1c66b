"""An artifact that a recipe names for a stage to begin with: there, not withdrawn, and whole where it is read."""

from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.store import Store
from stages.spec import EXIT_VERIFICATION


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
