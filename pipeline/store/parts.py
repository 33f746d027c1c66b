"""The parts of a store: its own directories, none of them a link. Looked at before anything trains.

The store as a whole may be a link or lie on another device. So may `runs/`, as a mount: nothing is renamed out of it. `.staging/` and
`artifacts/<kind>/` must be one file system, as artifacts are renamed from the one into the other.
"""

import re
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.store.aliases import ALIASES_DIR
from pipeline.store.directory import Directory, naming, open_root
from pipeline.store.disk import is_locked, is_utf8, locked, reading, refuse_link, writing
from pipeline.store.refs import KIND_PATTERN, next_version
from pipeline.store.staging import ARTIFACTS_DIR, STAGING_DIR, require_renames

RUNS_DIR, RECORDS_DIR, NOTES_DIR, TOKENS_DIR, REPLIES_DIR = "runs", "records", "notes", "tokens", "replies"
REPORTS_DIR, TRACKING_DIR, SLURM_DIR, DEMO_DIR, TRASH_DIR = "reports", "tracking", "slurm", "demo", ".trash"
ESTIMATES_DIR = "estimates"  # what `rlhf plan --cost` said
JOURNALS_DIR, MIXES_DIR = "judgements", "mixes"  # what people said of answers that are artifacts; several sources as one
_LOCK_FILE = ".lock"
RUN_PATTERN = re.compile(r"(?P<stage>[a-z]+)-(?P<key>[0-9a-f]{16})")

# Those in which each directory of such a name is a part too.
PARTS = {
    ARTIFACTS_DIR: KIND_PATTERN,
    ALIASES_DIR: KIND_PATTERN,
    RUNS_DIR: RUN_PATTERN,
    **dict.fromkeys(
        (
            STAGING_DIR,
            TRASH_DIR,
            RECORDS_DIR,
            NOTES_DIR,
            TOKENS_DIR,
            REPLIES_DIR,
            SLURM_DIR,
            DEMO_DIR,
            REPORTS_DIR,
            TRACKING_DIR,
            JOURNALS_DIR,
            MIXES_DIR,
            ESTIMATES_DIR,
        )
    ),
}


def require_own_parts(root: Path) -> None:
    """Refuse a store of which a part is a link, before anything is written or removed through it. Nothing is changed.

    Raises:
        ResourceError: one is (exit 5).
    """
    with suppress(FileNotFoundError), reading(root), open_root(root) as store:
        for part, pattern in PARTS.items():
            with suppress(FileNotFoundError), store.enter(part) as directory:
                links = sorted(directory.links()) if pattern else []
                if found := next((name for name in links if pattern and pattern.fullmatch(name)), None):
                    raise refuse_link(directory.path / found)


def require_places(root: Path, kinds: Iterable[str]) -> None:
    """Refuse a store in which artifacts of these kinds could not be published; their directories are made.

    Raises:
        ResourceError: their place is on another file system than staging, or cannot be written (exit 5).
        StoreError: no version number is left (exit 3).
    """
    for kind in kinds:
        with writing(root / ARTIFACTS_DIR / kind), ExitStack() as stack:
            store = stack.enter_context(open_root(root, create=True))
            staging = stack.enter_context(store.enter(STAGING_DIR, create=True))
            directory = stack.enter_context(store.enter(f"{ARTIFACTS_DIR}/{kind}", create=True))
            require_renames(staging, directory)
            next_version(kind, directory.names())


def require_utf8(root: Path) -> None:
    """Refuse a store that the libraries cannot open.

    Raises:
        ConfigError: Its path is no UTF-8.
    """
    if not is_utf8(root.absolute()):
        raise ConfigError([f"--store: found {root.absolute()}, needed a path in UTF-8, as the libraries open no other; rename it"])


@contextmanager
def hold_artifacts(root: Path, *, alone: bool = False) -> Generator[None]:
    """Keep artifacts from being removed while this process begins to rely on one; or, `alone`, remove some."""
    with ExitStack() as stack:
        with writing(root / ARTIFACTS_DIR):
            store = stack.enter_context(open_root(root, create=True))
            artifacts = stack.enter_context(store.enter(ARTIFACTS_DIR, create=True))
            with naming(artifacts.path / _LOCK_FILE):
                stack.enter_context(locked(_LOCK_FILE, dir_fd=artifacts.fd, shared=not alone))
        yield


def removes(store: Directory) -> bool:
    """Tell whether somebody removes artifacts of an open store just now."""
    with suppress(FileNotFoundError), store.enter(ARTIFACTS_DIR) as artifacts:
        return is_locked(_LOCK_FILE, dir_fd=artifacts.fd)
    return False
