"""`withdrawn.json`: the versions that learnt from records that were to be forgotten. They are no longer reused, exported or pushed."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.errors import StoreError
from pipeline.store.directory import naming, open_root
from pipeline.store.disk import locked, read_bounded, reading, replace_durably, writing
from pipeline.store.manifest import Sha256, VersionRef
from stages.blocks import Closed
from stages.spec import EXIT_VERIFICATION, RANKINGS_KIND, STAGES

WITHDRAWN_FILE = "withdrawn.json"
_MAX_BYTES = 256 * 1024 * 1024
# Kinds that `rlhf run` does not make -> what does.
_OTHER_MAKERS = {
    STAGES["sample"].kind: "`rlhf sample` or `rlhf round`",
    RANKINGS_KIND: "`rlhf rankings ANSWERS --publish` of what remains",
}


class Withdrawal(Closed):
    """Why a version is withdrawn."""

    seal: Sha256 = Field(description="Of its manifest: the number may be given again.")
    reason: str
    at: str = Field(description="ISO 8601, UTC.")


class _File(Closed):
    versions: dict[VersionRef, Withdrawal]


def read_withdrawn(root: Path) -> dict[str, Withdrawal]:
    """Read the versions of a store that are withdrawn, by ref.

    Raises:
        StoreError: it is damaged (exit 3) or cannot be read (exit 5).
    """
    with suppress(FileNotFoundError), reading(root / WITHDRAWN_FILE), open_root(root) as store, naming(root / WITHDRAWN_FILE):
        try:
            return _File.model_validate_json(read_bounded(WITHDRAWN_FILE, _MAX_BYTES, dir_fd=store.fd)).versions
        except ValueError as error:
            reason = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else error
            message = f"{root / WITHDRAWN_FILE}: {reason}; needed as `rlhf forget` writes it; restore it, or forget the same again"
            raise StoreError(message, EXIT_VERIFICATION) from error
    return {}


def name_maker(kind: str) -> str:
    """Name the command that makes another artifact of a kind, without what was forgotten."""
    return _OTHER_MAKERS.get(kind, "`rlhf run`")


def withdraw(root: Path, versions: Mapping[str, Withdrawal]) -> None:
    """Withdraw versions; those that are already keep their reason.

    Raises:
        ResourceError: the file system refused (exit 5).
    """
    with writing(root / WITHDRAWN_FILE), ExitStack() as stack:
        store = stack.enter_context(open_root(root, create=True))
        with naming(root / f".{WITHDRAWN_FILE}.lock"):
            stack.enter_context(locked(f".{WITHDRAWN_FILE}.lock", dir_fd=store.fd))
        before: dict[str, Withdrawal] = {}
        with suppress(StoreError):  # a damaged one is written anew
            before = read_withdrawn(root)
        kept = {ref: old for ref, old in before.items() if ref not in versions or versions[ref].seal == old.seal}
        content = _File(versions={**versions, **kept}).model_dump_json(indent=1).encode() + b"\n"
        replace_durably(WITHDRAWN_FILE, content, dir_fd=store.fd)
