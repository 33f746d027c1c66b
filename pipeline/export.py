"""An artifact -> a plain Hugging Face model: merged, cast, with its card.

verified copy (pipeline.store.copies) -> stages.merge in a child process, where it needs torch -> README.md (pipeline.card)
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pipeline.card import write_card
from pipeline.errors import StoreError
from pipeline.launch.environment import stage_environment
from pipeline.store.artifact import Artifact
from pipeline.store.copies import export_artifact
from pipeline.store.store import Store
from pipeline.text import clean
from stages.adapter_base import read_base
from stages.spec import ADAPTER_CONFIG, EXIT_OK

Dtype = Literal["bfloat16", "float16", "float32"]


def export(
    store: Store, ref: str, directory: Path, *, merge: bool, dtype: Dtype | None = None, told: Callable[[str], None] = lambda step: None
) -> Artifact:
    """Write an artifact's model into a new directory, whole or not at all.

    Args:
        store: Where it is.
        ref: Which one.
        directory: Where to; made, or empty.
        merge: A whole model in place of an adapter: merged/ where it was made, else merged now.
        dtype: Write the weights in this precision; None: as they are.
        told: Hears of each step that takes long with a large model.

    Raises:
        StoreError: see `export_artifact`; or the adapter's base cannot be opened (exit 3 or 4).
    """

    def finish(artifact: Artifact, draft: Path) -> None:
        arguments: list[str] = []
        if merge and (draft / ADAPTER_CONFIG).exists():
            kind = "reward_model" if artifact.kind == "rm" else "policy"
            arguments += ["--merge", str(artifact.model_path), "--kind", kind]
        elif (draft / ADAPTER_CONFIG).exists():
            _name_base(draft / ADAPTER_CONFIG, artifact.model_path)
        if dtype:
            arguments += ["--dtype", dtype]
        if arguments:
            steps = ["merging the adapter into its base"] * ("--merge" in arguments) + [f"writing weights in {dtype}"] * (dtype is not None)
            told(f"{artifact.ref}: {', '.join(steps)}")
            _change(artifact, draft, arguments)
        card = write_card(store, artifact, whole=not (draft / ADAPTER_CONFIG).exists(), dtype=dtype)
        (draft / "README.md").write_text(card, encoding="utf-8")

    told(f"{ref}: copying it, every byte verified")
    return export_artifact(store, ref, directory, merged=merge, finish=finish)


def _name_base(config: Path, adapter: Path) -> None:
    """Have an adapter's copy name its base where that is, though the store was moved since it was trained."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    if (base := read_base(adapter)[0]) != settings.get("base_model_name_or_path"):
        config.write_text(json.dumps(settings | {"base_model_name_or_path": base}, indent=2), encoding="utf-8")


def _change(artifact: Artifact, draft: Path, arguments: list[str]) -> None:
    """Have the child process merge and cast."""
    base = artifact.manifest.facts.get("base_model")
    environment, _ = stage_environment("", offline=Path(str(base)).is_absolute())
    command = [sys.executable, "-P", "-m", "stages.merge", str(draft), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode != EXIT_OK:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = clean(said[-1]) if said else f"its process ended with exit code {done.returncode}"
        raise StoreError(f"{artifact.ref}: {reason}", done.returncode if done.returncode > 0 else 1)
