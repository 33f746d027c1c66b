"""Publish several versions and move an alias, as one of many processes. Run as a script: race_driver.py STORE WORKER COUNT.

Waits for the file STORE.go; prints JSON: {"refs": [...], "moves": [[previous, ref], ...]}.
"""

import json
import sys
import time
from pathlib import Path

from pipeline.store.manifest import ManifestFields
from pipeline.store.store import Store


def main(root, worker, count):
    print("ready", flush=True)
    while not root.with_suffix(".go").exists():
        time.sleep(0.001)
    refs, moves = [], []
    for number in range(count):
        store = Store(root)
        with store.staging("sft") as staging:
            (staging.path / "model").mkdir()
            for name in ("a.safetensors", "b.safetensors"):
                (staging.path / "model" / name).write_text(f"{worker} {number} {name}")
            artifact = store.publish(staging, ManifestFields(run_id=f"{worker}-{number}"))
        alias = store.set_alias("sft", "best", artifact.ref, by=worker)
        store.set_alias("sft", f"of-worker-{worker}", artifact.ref, by=worker)
        refs.append(artifact.ref)
        moves.append([alias.previous, alias.ref])
    print(json.dumps({"refs": refs, "moves": moves}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
