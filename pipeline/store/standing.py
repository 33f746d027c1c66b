"""Whether a version stands: it is the one that was published (the ledger), and is not withdrawn. Both files are read when they changed."""

from contextlib import suppress
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.directory import open_root
from pipeline.store.disk import reading, tell_state
from pipeline.store.ledger import LEDGER_FILE, Entry, Ledger, read_ledger
from pipeline.store.mark import MARK_FILE
from pipeline.store.trash import list_unnoted
from pipeline.store.withdrawn import WITHDRAWN_FILE, Withdrawal, read_withdrawn
from stages.spec import EXIT_VERIFICATION


class Standing:
    """What the ledger and the withdrawals of a store say of its versions.

    Args:
        root: Of the store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._ledger: tuple[list[tuple[int, ...]], Ledger | None] = ([], None)  # as it was read last
        self._withdrawn: tuple[tuple[int, ...], dict[str, Withdrawal]] = ((), {})

    def require_listed(self, artifact: Artifact) -> Artifact:
        """Refuse a version that is not the one that was published; the ledger is read after the manifest, as its line was there first.

        Raises:
            StoreError: it is not (exit 3).
        """
        ledger = self._read_ledger()
        if ledger and (accusation := ledger.accuse(artifact.ref, artifact.seal)):
            todo = "" if ledger.problem else f"; `rlhf rm {artifact.ref}`"
            raise StoreError(f"{artifact.path}: {accusation}{todo}", EXIT_VERIFICATION)
        return artifact

    def find_withdrawal(self, artifact: Artifact) -> str:
        """Say why an artifact is withdrawn; empty where it is not."""
        found = self._read_withdrawn().get(artifact.ref)
        return found.reason if found and found.seal == artifact.seal else ""

    def has_withdrawals(self) -> bool:
        """Tell whether any artifact is withdrawn."""
        return bool(self._read_withdrawn())

    def list_published(self) -> dict[str, Entry]:
        """List the versions that should be there: ref -> the ledger's last word on each.

        Raises:
            StoreError: the ledger was changed by hand (exit 3).
        """
        ledger = self._read_ledger()
        if ledger and ledger.problem:
            raise StoreError(ledger.problem, EXIT_VERIFICATION)
        return ledger.standing() if ledger else {}

    def list_taken_away(self) -> set[str]:
        """List what was removed just now, or by a process that was killed, and may not stand in the ledger yet."""
        with suppress(FileNotFoundError), reading(self._root), open_root(self._root) as store:
            return set(list_unnoted(store).values())
        return set()

    def tell_lost(self, ref: str) -> str:
        """Say of a version that is not there that it was, and went without `rlhf rm`; empty where it did not."""
        ledger = self._read_ledger()
        entry = ledger.standing().get(ref) if ledger and ref not in self.list_taken_away() else None
        return f" (it {entry}, and is gone without `rlhf rm`)" if entry else ""

    def _read_withdrawn(self) -> dict[str, Withdrawal]:
        state = tell_state(self._root, WITHDRAWN_FILE)
        if state != self._withdrawn[0]:
            self._withdrawn = state, read_withdrawn(self._root)
        return self._withdrawn[1]

    def _read_ledger(self) -> Ledger | None:
        state = [tell_state(self._root, name) for name in (LEDGER_FILE, MARK_FILE)]
        if state != self._ledger[0]:
            self._ledger = state, read_ledger(self._root)
        return self._ledger[1]
