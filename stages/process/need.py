"""How much room on the disk checkpoints and the output of a stage take: asked before it trains, and when it is planned. Torch-free.

While a checkpoint is written, those before it are kept: one more than that at once, or all that are kept and the output.
"""

KEPT = 2  # complete checkpoints: the newest, and one in case that is damaged


def count_saves(by_steps: int, steps: int, save_minutes: float | None) -> int:
    """Count the checkpoints still to come, at most: those by steps, or where they come by time too, one after each step to come."""
    return by_steps if save_minutes is None else steps


def measure_checkpoints(checkpoint: int, saves: int, complete: int = 0) -> tuple[int, int]:
    """Say how many more bytes checkpoints will take.

    Args:
        checkpoint: Bytes of one.
        saves: How many are still to come.
        complete: How many are there.

    Returns:
        (at the most, at the end).
    """
    most = max(min(complete + saves, KEPT + 1) - complete, 0) * checkpoint
    return most, max(min(complete + saves, KEPT) - complete, 0) * checkpoint


def measure_most(checkpoint: int, output: int, saves: int) -> int:
    """Say how many bytes a stage takes at the most, on one file system, from its beginning on."""
    most, at_end = measure_checkpoints(checkpoint, saves)
    return max(most, at_end + output)
