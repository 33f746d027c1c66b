"""What a trace is asked for, and what is said where it leaves no report."""

import subprocess

from pytest import mark, raises

from pipeline.errors import ConfigError
from pipeline.estimates import traces
from pipeline.estimates.traces import _count_at_once, _describe_end, count_turns, make_setup, parse_records
from pipeline.recipe.load import find_recipe, load_recipe


def test_processes_that_outnumber_the_cores_measure_by_what_fits_and_take_turns(monkeypatch):
    monkeypatch.setattr(traces, "count_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def plan(processes, threads):
        setup = make_setup(load_recipe(find_recipe("demo"), [f"hardware.processes={processes}"], has_files=False), None)
        return *_count_at_once(setup, threads), count_turns(setup, threads)

    assert plan(1, 0) == (1, 0, 1.0)  # torch takes all cores
    assert plan(2, 0) == (2, 1, 1.0)  # torchrun gives each of several one thread
    assert plan(2, 2) == (2, 2, 1.0)
    assert plan(8, 1) == (4, 1, 2.0)
    assert plan(4, 2) == (2, 2, 2.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4,1")
    assert plan(2, 0) == (1, 4, 2.0)


def test_a_plan_takes_the_precision_that_stages_will_take(tmp_path, monkeypatch):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    recipe = load_recipe(find_recipe("demo"), ["hardware.precision=auto"], has_files=False)
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("flags\t\t: avx2 avx512f avx512_bf16\n")
    assert traces.settle_precision(recipe, None, cpu) == "bfloat16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert traces.settle_precision(recipe, None, cpu) == "float32"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    cpu.write_text("flags\t\t: avx2 avx512f\n")
    assert traces.settle_precision(recipe, None, cpu) == traces.settle_precision(recipe, None, tmp_path / "none") == "float32"


@mark.parametrize(
    ("script", "said"),
    [
        ("kill -9 $$", "killed by SIGKILL; if you did not, the system ran out of memory"),
        ("kill -SEGV $$", "killed by SIGSEGV; if hardware.threads is above the number of cores, lower it"),
        ("kill -TERM $$", "killed by SIGTERM"),
        ("echo first >&2; echo second >&2; exit 1", "second"),
        ("exit 1", "it left no report"),
    ],
)
def test_a_trace_that_leaves_no_report_is_told_by_how_it_ended(script, said):
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert _describe_end(done) == said


def test_records_are_a_kind_and_a_number():
    assert parse_records(["demonstrations=200_000", "comparisons=5"]) == {"demonstrations": 200_000, "comparisons": 5}
    assert parse_records(["prompts=1__000_"]) == {"prompts": 1000}
    for wrong in ("demos=5", "prompts", "prompts=many", "prompts=", "prompts=²", "prompts=-1", "prompts=0", f"prompts={'9' * 5000}"):
        with raises(ConfigError, match="--records: found"):
            parse_records([wrong])
    with raises(ConfigError, match="found prompts = 5 and 7, needed one number"):
        parse_records(["prompts=5", "prompts=7"])
    assert parse_records(["prompts=5", "prompts=5"]) == {"prompts": 5}
