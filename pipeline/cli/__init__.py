"""The command `rlhf`: one verb, one function. Starts without torch; errors are one line and an exit code."""

import os
import signal
import sys
from typing import NoReturn

import typer

import pipeline.shadowed  # noqa: F401 # pyright: ignore[reportUnusedImport], it looks before the next imports fail
from pipeline.cli import artifacts, chatting, doctor, ranking, rankings, reading, recipes, records, remotes, reports, rounds, trust
from pipeline.launch.environment import QUIET
from pipeline.terminal import prepare_terminal
from stages.spec import EXIT_OK

app = typer.Typer(
    help="SFT -> reward model -> PPO: one recipe, chained stages, versioned artifacts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("run")(recipes.run_command)
app.command("plan")(recipes.plan_command)
app.command("check-data")(recipes.check_data_command)
app.command("config")(recipes.config_command)
app.command("launch-command")(recipes.launch_command_command)
app.command("ls")(artifacts.ls_command)
app.command("show")(reading.show_command)
app.command("report")(reports.report_command)
app.command("samples")(reading.samples_command)
app.command("lineage")(reading.lineage_command)
app.command("diff")(reading.diff_command)
app.command("verify")(artifacts.verify_command)
app.command("chat")(chatting.chat_command)
app.command("score")(chatting.score_command)
app.command("watch")(reading.watch_command)
app.command("runs")(artifacts.runs_command)
app.command("alias")(artifacts.alias_command)
app.command("tag", help="The same as alias.")(artifacts.alias_command)
app.command("gc")(artifacts.gc_command)
app.command("rm")(artifacts.rm_command)
app.command("import")(artifacts.import_command)
app.command("export")(artifacts.export_command)
app.command("round")(rounds.round_command)
app.command("sample")(rounds.sample_command)
app.command("rank")(ranking.rank_command)
app.command("rankings")(rankings.rankings_command)
app.command("doctor")(doctor.doctor_command)
app.command("sign")(trust.sign_command)
app.command("sbom")(trust.sbom_command)
app.command("trace")(records.trace_command)
app.command("forget")(records.forget_command)
app.command("push")(remotes.push_command)
app.command("pull")(remotes.pull_command)


def main() -> NoReturn:
    """Run the command line; user mistakes and failures end in one line on stderr and their exit code."""
    prepare_terminal()
    os.environ.update(QUIET)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_by_signal)
    try:
        app()
    except Exception as error:
        from pipeline.report.errors import print_error

        sys.exit(print_error(error))
    finally:
        sys.stdout.flush()  # here at the latest it is found out that nobody reads it
    sys.exit(EXIT_OK)


def _end_by_signal(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
