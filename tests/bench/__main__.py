"""Measure the pipeline's speed and memory against what one would use otherwise, on this machine's CPU.

    make bench                          everything, into tests/bench/results/all.md and all.json
    make bench BENCH="ppo --size small --repeats 5"
    make bench BENCH="--quick"          a smoke test of about two minutes, into build/bench/

    ppo      one PPO update by phases against TRL 1.12.0, the last release with a PPO trainer, and against the floor: the time that the
             matrix products of its real tokens take on this machine; the small model compiled too, the larger ones on fewer prompts
    rm       one optimizer step on K ranked answers against TRL's RewardTrainer on their C(K,2) pairs, in its
             micro-batches of 8 pairs and all of them at once; one thread
    sft      one epoch on answers of skewed lengths: padded by TRL, unpadded, packed
    rollout  sampled tokens per second against transformers' `generate`
    scale    one process and two on the same work, one thread each; two that know nothing of one another are the machine's ceiling
    lora     peak memory of PPO with LoRA, four models and one backbone, against SFT with LoRA; 134 M parameters

Each side is a process of its own (protocol.py), and all sides of a case take turns in one run, A B A B, so that a slower minute of the
machine hits them all. Sides get the same models (random weights), prompts, epochs and minibatches; lengths of sampled answers differ by
chance, so tokens are counted and shown. TRL 1.12.0 gets an environment of its own under build/, made at first use; the table tells
whether it computes in bfloat16 when asked to. Peak memory is the process's highest resident memory; net is without what it had after
its imports.

TRL takes the policy's old log-probabilities from generation, ours computes them in the score phase: compare the totals first.

Report only figures that stand in one table: times of two runs on a shared machine are not comparable.
"""

import argparse
from pathlib import Path

from tests.bench.protocol import ROOT
from tests.bench.sections import Options, measure_lora, measure_ppo, measure_rm, measure_rollout, measure_scale, measure_sft
from tests.bench.sizes import SIZES
from tests.bench.table import describe_machine, write_report

SECTIONS = {
    "ppo": measure_ppo,
    "rm": measure_rm,
    "sft": measure_sft,
    "rollout": measure_rollout,
    "lora": measure_lora,
    "scale": measure_scale,
}
# Where the command line names no size.
_SIZES = {"ppo": ("small", "big"), "rm": ("small",), "sft": ("small",), "rollout": ("small", "big"), "lora": ("wide",), "scale": ("small",)}


def main() -> None:
    """Measure what the command line asks for; the report is written anew after each case, so that an interrupted run leaves one."""
    arguments = parse_arguments()
    names = list(SECTIONS) if arguments.what == "all" else [arguments.what]
    directory = ROOT / "build" / "bench" if arguments.quick else Path(__file__).parent / "results"
    path = directory / (arguments.name or arguments.what)
    repeats = 1 if arguments.quick else arguments.repeats
    machine = describe_machine(arguments.threads, repeats)
    sections: dict[str, list] = {}
    for name in names:
        sizes = (arguments.size,) if arguments.size else ("small",) if arguments.quick else _SIZES[name]
        options = Options(sizes, repeats, 1 if name in ("rm", "scale") else arguments.threads, arguments.quick)
        for case in SECTIONS[name](options):
            sections.setdefault(name, []).append(case)
            write_report(path, machine, sections)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(f"written: {path.relative_to(ROOT)}.md and .json")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure speed and memory; see tests/bench/__main__.py.")
    parser.add_argument("what", nargs="?", default="all", choices=["all", *SECTIONS])
    sizes = [size for size in SIZES if size not in ("tiny", "1b")]
    parser.add_argument("--size", choices=sizes, help="default: small and big for ppo and rollout, wide for lora, else small")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count, after one that warms up (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each side (default 2; rm: always 1)")
    parser.add_argument("--quick", action="store_true", help="few prompts, one turn, small model: a smoke test")
    parser.add_argument("--name", help="file name of the report (default: what is measured)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
