"""`python -m pipeline.cli` is `rlhf`."""

from pipeline.cli import main

main()
