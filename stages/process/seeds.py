"""Seeds out of seeds: one for each use, so that no two uses share their noise."""

import hashlib


def derive_seed(*parts: int) -> int:
    """Hash whole numbers (seed, iteration, rank, ...) into one seed; close inputs give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
