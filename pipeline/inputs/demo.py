"""The value `demo` in a recipe -> files: the embedded example is generated once per seed and version, whole or not at all.

Its files are hashed when it is made and before each use: a demo that was changed is refused.
"""

import json
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

from data.demo import DEMO_VERSION
from data.system.drafts import make_draft
from pipeline.errors import StoreError
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import DEMO_PATTERN, list_sources
from pipeline.store.directory import list_tree, open_root
from pipeline.store.disk import hash_file, make_directories, read_bounded, reading, writing
from pipeline.store.parts import DEMO_DIR
from stages.spec import EXIT_VERIFICATION, DataSource, DataSplits

DEFAULT_SEED = 7
HASHES_FILE = "made.json"
_MAX_HASHES_BYTES = 1024 * 1024
_STALE_DRAFT_S = 3600  # generating takes seconds: whoever made an older draft was killed


def demo_seed(value: str) -> int | None:
    """Return the seed of `demo` or `demo@SEED` (with or without a record set); None for any other value."""
    match = DEMO_PATTERN.fullmatch(value)
    return None if match is None else int(match["seed"] or DEFAULT_SEED)


def demo_directory(store_root: Path, seed: int) -> Path:
    """Say where a demo lies, made or not."""
    return store_root / DEMO_DIR / f"{seed}-v{DEMO_VERSION}"


def locate(value: str, store_root: Path) -> str:
    """Turn `demo@7:prompts.train` into the path of its file, `demo` into that of its base model; leave anything else as it is."""
    match = DEMO_PATTERN.fullmatch(value)
    if match is None:
        return value
    directory = demo_directory(store_root, int(match["seed"] or DEFAULT_SEED))
    return str(directory / (f"{match['kind']}.{match['split']}.jsonl" if match["kind"] else "base"))


def locate_splits(splits: DataSplits, store_root: Path) -> DataSplits:
    """Locate both sources of a kind."""
    held_out = locate_source(splits.eval, store_root) if splits.eval else None
    return DataSplits(train=locate_source(splits.train, store_root), eval=held_out)


def locate_source(source: DataSource, store_root: Path) -> DataSource:
    """Locate one source, as what a stage is given."""
    return DataSource.model_validate(
        {name: getattr(source, name) for name in DataSource.model_fields} | {"path": locate(source.path, store_root)}
    )


def demo_seeds(recipe: Recipe) -> set[int]:
    """Collect the seeds of all demos that a recipe names."""
    values = [recipe.base_model]
    for splits in (recipe.data.demonstrations, recipe.data.comparisons, recipe.data.prompts):
        values += [source.path for _, source in list_sources(splits)] if splits else []
    return {seed for value in values if (seed := demo_seed(value)) is not None}


def make_demo(store_root: Path, seed: int, *, may_write: bool = True) -> Path:
    """Generate a demo unless it is there; another process that does the same at the same time does no harm.

    Args:
        store_root: Of the store that keeps it.
        seed: Of the demo.
        may_write: Generate one that is not there. Otherwise nothing changes, and one from before hashes were kept is taken as it is.

    Raises:
        StoreError: It is not as it was made (exit 3).
        ResourceError: It cannot be written (exit 5).
    """
    directory = demo_directory(store_root, seed)
    if (known := _read_hashes(directory)) is not None:
        _require_intact(store_root, directory, known)
    elif may_write:
        _generate(store_root, directory, seed)
    return directory


def _generate(store_root: Path, directory: Path, seed: int) -> None:
    from data.demo.materialize import write_demo  # the generator is needed once; every `rlhf plan` comes by here

    with writing(directory):
        make_directories(directory.parent)
        with make_draft(directory, stale_s=_STALE_DRAFT_S) as draft:
            write_demo(draft, seed)
            mode = draft.stat().st_mode & 0o666  # as the umask has it: the library writes weights that only their owner may read
            for path in filter(Path.is_file, draft.rglob("*")):
                path.chmod(mode)
            hashes = _hash_all(draft.parent, draft.name)
            (draft / HASHES_FILE).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
            try:
                draft.rename(directory)
            except OSError:
                if not directory.is_dir():
                    raise
                # Another process made it meanwhile; or it is there from before hashes were kept, and gets them if it is intact.
                _require_intact(store_root, directory, hashes)
                with suppress(OSError):  # a store that may only be read
                    (draft / HASHES_FILE).replace(directory / HASHES_FILE)


def _require_intact(store_root: Path, directory: Path, known: dict[str, str]) -> None:
    """Compare every byte of a demo with what was made.

    Raises:
        StoreError: with the first file that differs (exit 3).
    """
    with reading(directory):
        found = _hash_all(store_root, f"{directory.parent.name}/{directory.name}")
    for name in sorted(found.keys() | known.keys()):
        if found.get(name) != known.get(name):
            message = (
                f"{directory / name}: found {found.get(name, 'no such file')[:12]}, needed {known.get(name, 'no such file')[:12]}, as it "
                f"was made; remove {directory} to have it made again, and keep data of your own elsewhere"
            )
            raise StoreError(message, EXIT_VERIFICATION)


def _hash_all(root: Path, below: str) -> dict[str, str]:
    """Hash all files of a demo but the list of hashes: relative path -> sha256."""
    hashes: dict[str, str] = {}
    with open_root(root) as top, top.enter(below) as demo:
        for path, is_file in list_tree(demo):
            inner, _, name = path.rpartition("/")
            with demo.enter(inner) as directory:
                if path != HASHES_FILE:
                    hashes[path] = hash_file(name, dir_fd=directory.fd)[1] if is_file else "no plain file"
    return hashes


def _read_hashes(directory: Path) -> dict[str, str] | None:
    """Read the hashes of a demo as it was made; None where they were not kept."""
    path = directory / HASHES_FILE
    try:
        return TypeAdapter(dict[str, str]).validate_json(read_bounded(path, _MAX_HASHES_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it cannot be read as a list of hashes"
        raise StoreError(
            f"{path}: {reason}; an intact one is needed; remove {directory} to have it made again", EXIT_VERIFICATION
        ) from error
