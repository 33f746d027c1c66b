"""An environment of its own for the last TRL that has a PPO trainer; made once under build/, which git ignores."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRL_VERSION = "1.12.0"  # the last release with trl.experimental.ppo
DIRECTORY = ROOT / "build" / f"bench-trl-{TRL_VERSION}"


def ensure_trl_environment() -> Path:
    """Make the environment unless it is there, and return its Python.

    Everything but TRL itself has the versions of constraints.txt. torch goes in first, from whatever index pip is set up with: a
    resolver that meets it as a dependency may choose another build of it.
    """
    python, done = DIRECTORY / "bin" / "python", DIRECTORY / ".installed"
    if done.exists():
        return python
    print(f"making {DIRECTORY.relative_to(ROOT)} (once; minutes)", file=sys.stderr, flush=True)
    shutil.rmtree(DIRECTORY, ignore_errors=True)  # a torn one
    subprocess.run([sys.executable, "-m", "venv", str(DIRECTORY)], check=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = DIRECTORY / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if not line.startswith("trl==")), encoding="utf-8")
    for packages in (["torch"], [f"trl=={TRL_VERSION}", "transformers", "accelerate", "datasets"]):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *packages], check=True)
    done.touch()
    return python
