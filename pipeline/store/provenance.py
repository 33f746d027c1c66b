"""With which code and packages an artifact was made."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from pipeline.store.manifest import CodeState

_PACKAGES = ("rlhf", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "tokenizers", "safetensors")


@cache
def code_state() -> CodeState:
    """Read the git commit of this source tree; none outside a checkout of it."""
    root = Path(__file__).resolve().parents[2]
    if _git(root, "ls-files", "--error-unmatch", "pipeline/store/provenance.py") is None:
        return CodeState.model_validate({})
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return CodeState(commit=_git(root, "rev-parse", "HEAD"), dirty=bool(changes))


@cache
def package_versions() -> dict[str, str]:
    """Read the versions of what shapes a result."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
