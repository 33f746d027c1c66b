"""The value `demo` in a recipe -> files: the embedded example is generated once per seed and version, whole or not at all."""

import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from data.demo import DEMO_VERSION
from pipeline.recipe.schema import DEMO_PATTERN, Recipe
from pipeline.store.disk import make_directories, writing
from stages.spec import DataSource, DataSplits

DEFAULT_SEED = 7
_STALE_DRAFT_S = 3600  # generating takes seconds: whoever made an older draft was killed


def demo_seed(value: str) -> int | None:
    """Return the seed of `demo` or `demo@SEED` (with or without a record set); None for any other value."""
    match = DEMO_PATTERN.fullmatch(value)
    return None if match is None else int(match["seed"] or DEFAULT_SEED)


def demo_directory(store_root: Path, seed: int) -> Path:
    """Say where a demo lies, made or not."""
    return store_root / "demo" / f"{seed}-v{DEMO_VERSION}"


def locate(value: str, store_root: Path) -> str:
    """Turn `demo@7:prompts.train` into the path of its file, `demo` into that of its base model; leave anything else as it is."""
    match = DEMO_PATTERN.fullmatch(value)
    if match is None:
        return value
    directory = demo_directory(store_root, int(match["seed"] or DEFAULT_SEED))
    return str(directory / (f"{match['kind']}.{match['split']}.jsonl" if match["kind"] else "base"))


def locate_splits(splits: DataSplits, store_root: Path) -> DataSplits:
    """Locate both sources of a kind."""

    def located(source: DataSource) -> DataSource:
        return source.model_copy(update={"path": locate(source.path, store_root)})

    return DataSplits(train=located(splits.train), eval=located(splits.eval) if splits.eval else None)


def demo_seeds(recipe: Recipe) -> set[int]:
    """Collect the seeds of all demos that a recipe names."""
    values = [recipe.base_model]
    for splits in (recipe.data.demonstrations, recipe.data.comparisons, recipe.data.prompts):
        values += [source.path for source in (splits.train, splits.eval) if source] if splits else []
    return {seed for value in values if (seed := demo_seed(value)) is not None}


def make_demo(store_root: Path, seed: int) -> Path:
    """Generate a demo unless it is there; another process that does the same at the same time does no harm.

    Raises:
        ResourceError: It cannot be written (exit 5).
    """
    directory = demo_directory(store_root, seed)
    if directory.is_dir():
        return directory
    from data.demo.materialize import write_demo  # the generator is needed once; every `rlhf plan` comes by here

    with writing(directory):
        make_directories(directory.parent)
        _remove_stale_drafts(directory.parent)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=directory.parent))
        try:
            write_demo(draft, seed)
            draft.chmod(0o755)
            try:
                draft.rename(directory)
            except OSError:
                if not directory.is_dir():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return directory


def _remove_stale_drafts(directory: Path) -> None:
    for draft in directory.glob(".draft-*"):
        with suppress(FileNotFoundError):  # another process has renamed or removed it
            if time.time() - draft.stat().st_mtime > _STALE_DRAFT_S:
                shutil.rmtree(draft, ignore_errors=True)
