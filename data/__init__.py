"""Records, their checks, their fingerprint and the one token stream; no torch, nothing of `stages` or `pipeline`."""
