"""Stands for `stages.tokens` beside the fake stages, whose base models have no tokenizer: makes nothing, and counts all records as used."""

import json
import sys
from pathlib import Path

spec = json.loads(Path(sys.argv[1]).read_text())
sizes = spec["records"]
counts = {}
for kind in spec["data"]:
    held_out = sizes.get(f"{kind}.eval", 1)
    train = sizes[f"{kind}.train"] - (held_out if f"{kind}.eval" not in sizes else 0)
    counts[kind] = {"train": {kind: train}, "eval": {kind: held_out}}
Path(spec["report_path"]).write_text(json.dumps({"counts": counts, "directories": []}))
