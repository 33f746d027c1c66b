"""What the trainer keeps beside its models on the disk, and the state of the random generators.

All noise of PPO comes from seeds of (seed, iteration, rank); the generators' states are kept for whatever a library draws.
"""

from pathlib import Path
from typing import Any

import torch

_STATE_FILE = "state.pt"


def write_state(state: dict[str, Any], directory: Path) -> None:
    """Write plain data and tensors."""
    torch.save(state, directory / _STATE_FILE)


def read_state(directory: Path) -> dict[str, Any]:
    """Read what `write_state` left, onto the CPU."""
    return torch.load(directory / _STATE_FILE, map_location="cpu", weights_only=True)


def collect_generator_states() -> dict[str, Any]:
    """Collect the states of torch's generators in this process: of the GPUs that it sees, that of the one that it computes on."""
    return {"cpu": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []}


def restore_generator_states(states: dict[str, Any]) -> None:
    """Go back to states that `collect_generator_states` returned, on a machine with other GPUs, or without, too."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"][0])
