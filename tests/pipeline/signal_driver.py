"""Run `rlhf` in forks of one process, each of which gets stop signals while its stage is published, and see how they end.

    signal_driver.py CASES.json       [{"arguments", "output", "signals", "at": "hash" | "rename" | "renamed"}]; prints the exit codes

The signals come from inside, so that they come at that very moment: when the first file is made durable, or around the rename.
"""

import json
import os
import sys
import time
from pathlib import Path

import pipeline.report.progress
import pipeline.run  # noqa: F401  (imported before the forks)
from pipeline.cli import main
from pipeline.store import publish


def send(signals):
    while signals:
        os.kill(os.getpid(), signals.pop(0))
        time.sleep(1.1 if signals else 0)  # SIGTERMs within a second are one wish


def run(case):
    hash_file, rename, signals = publish.hash_file, os.rename, case["signals"]

    def hash_and_send(*arguments, **options):
        if case["at"] == "hash":
            send(signals)
        return hash_file(*arguments, **options)

    def rename_and_send(source, target, **options):
        is_version = str(target).startswith("v0")
        if is_version and case["at"] == "rename":
            send(signals)
        rename(source, target, **options)
        if is_version and case["at"] == "renamed":
            send(signals)

    publish.hash_file, os.rename = hash_and_send, rename_and_send
    sys.argv = ["rlhf", *case["arguments"]]
    output = os.open(case["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    main()


codes = []
for case in json.loads(Path(sys.argv[1]).read_text()):
    process = os.fork()
    if process == 0:
        run(case)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(json.dumps(codes))
