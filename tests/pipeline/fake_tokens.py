"""Stands for `stages.tokens` beside the fake stages, whose base models have no tokenizer: makes nothing, and counts all records as used.

FAKE_TOKENS=wait: once `waiting` lies beside its spec, it waits for a signal.
"""

import json
import os
import sys
import time
from pathlib import Path

spec = json.loads(Path(sys.argv[1]).read_text())
if os.environ.get("FAKE_TOKENS") == "wait":
    Path(sys.argv[1]).with_name("waiting").touch()
    time.sleep(600)
sizes = spec["records"]
counts = {}
for kind in spec["data"]:
    held_out = sizes.get(f"{kind}.eval", 1)
    train = sizes[f"{kind}.train"] - (held_out if f"{kind}.eval" not in sizes else 0)
    counts[kind] = {"train": {kind: train}, "eval": {kind: held_out}}
Path(spec["report_path"]).write_text(json.dumps({"counts": counts, "directories": []}))
