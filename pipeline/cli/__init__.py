"""The command `rlhf`: one verb, one function. Starts without torch; errors are one line and an exit code."""

import pipeline.quiet_start  # isort: skip # pyright: ignore[reportUnusedImport], before the others, of which each takes its time
import pipeline.rlhf_start  # isort: skip # noqa: F401 # pyright: ignore[reportUnusedImport], before the next imports find others

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pipeline.cli import artifacts, chatting, doctor, ranking, rankings, reading, recipes, records, remotes, rounds
from pipeline.cli.mistyped import tell_mistyped
from pipeline.launch.environment import QUIET
from pipeline.launch.signals import stop_signals
from pipeline.pasted import forget_given
from pipeline.terminal import prepare_terminal
from stages.spec import EXIT_OK, RUN_STAGES


class _Commands(TyperGroup):
    """The commands; who types a stage's name, as `make` takes it, is told how it is run (`rm` removes artifacts), and who types a key
    of the recipe as an option, how it is set."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in _ALL_STAGES or (name in RUN_STAGES and name not in self.commands):
            until = "" if name in _ALL_STAGES else f" --until {name}"
            ctx.fail(f"No such command {name!r}. Stages are run by: rlhf run RECIPE{until}")
        if name == "help":
            of_one = [word for word in args[1:2] if word in self.commands]
            ctx.fail(f"No such command 'help'. Help is: rlhf {' '.join([*of_one, '--help'])}")
        found = super().resolve_command(ctx, args)
        words, params = found[2], found[1].params if found[1] else []
        if name in _BEFOREHAND and "--dry-run" in words:
            ctx.fail(f"No such option: --dry-run. What would be done is said by: rlhf {_BEFOREHAND[name]}")
        if any("--set" in param.opts for param in params) and (told := tell_mistyped(params, words)):
            ctx.fail(told)
        return found


_ALL_STAGES = ("pipeline", "train")
_BEFOREHAND = {"run": "plan", "forget": "trace"}


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_MAKE, _LOOK, _PEOPLE = "Recipes and their runs", "What was made", "People rank, the policy learns"
_STORE, _RECORDS = "The store", "People's records"


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from pipeline.store.provenance import package_versions

        print(", ".join(f"{name} {found}" for name, found in {"rlhf": version("rlhf"), **package_versions()}.items()))
        raise typer.Exit


@app.callback()
def begin(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version, and those of what it stands on.")
    ] = False,
) -> None:
    """SFT -> reward model -> PPO: one recipe, chained stages, versioned artifacts."""


app.command("run", rich_help_panel=_MAKE)(recipes.run_command)
app.command("plan", rich_help_panel=_MAKE)(recipes.plan_command)
app.command("check-data", rich_help_panel=_MAKE)(recipes.check_data_command)
app.command("config", rich_help_panel=_MAKE)(recipes.config_command)
app.command("launch-command", rich_help_panel=_MAKE)(recipes.launch_command_command)
app.command("watch", rich_help_panel=_MAKE)(reading.watch_command)
app.command("runs", rich_help_panel=_MAKE)(artifacts.runs_command)
app.command("ls", rich_help_panel=_LOOK)(artifacts.ls_command)
app.command("show", rich_help_panel=_LOOK)(reading.show_command)
app.command("report", rich_help_panel=_LOOK)(reading.report_command)
app.command("samples", rich_help_panel=_LOOK)(reading.samples_command)
app.command("lineage", rich_help_panel=_LOOK)(reading.lineage_command)
app.command("diff", rich_help_panel=_LOOK)(reading.diff_command)
app.command("chat", rich_help_panel=_LOOK)(chatting.chat_command)
app.command("score", rich_help_panel=_LOOK)(chatting.score_command)
app.command("sample", rich_help_panel=_PEOPLE)(rounds.sample_command)
app.command("rank", rich_help_panel=_PEOPLE)(ranking.rank_command)
app.command("rankings", rich_help_panel=_PEOPLE)(rankings.rankings_command)
app.command("round", rich_help_panel=_PEOPLE)(rounds.round_command)
app.command("alias", rich_help_panel=_STORE)(artifacts.alias_command)
app.command("tag", help="The same as alias.", rich_help_panel=_STORE)(artifacts.alias_command)
app.command("verify", rich_help_panel=_STORE)(artifacts.verify_command)
app.command("doctor", rich_help_panel=_STORE)(doctor.doctor_command)
app.command("gc", rich_help_panel=_STORE)(artifacts.gc_command)
app.command("rm", rich_help_panel=_STORE)(artifacts.rm_command)
app.command("import", rich_help_panel=_STORE)(artifacts.import_command)
app.command("export", rich_help_panel=_STORE)(artifacts.export_command)
app.command("push", rich_help_panel=_STORE)(remotes.push_command)
app.command("pull", rich_help_panel=_STORE)(remotes.pull_command)
app.command("sign", rich_help_panel=_STORE)(artifacts.sign_command)
app.command("sbom", rich_help_panel=_STORE)(artifacts.sbom_command)
app.command("trace", rich_help_panel=_RECORDS)(records.trace_command)
app.command("forget", rich_help_panel=_RECORDS)(records.forget_command)


def main() -> NoReturn:
    """Run the command line."""
    run(_build_commands())


@functools.cache
def _build_commands() -> Callable[[], object]:
    """Build them once: it takes 12 ms, and a process of tests runs hundreds."""
    return get_command(app)


def run(command: Callable[[], object]) -> NoReturn:
    """Run a program to its end; user mistakes and failures end in one line on stderr and their exit code."""
    prepare_terminal()
    forget_given()
    os.environ.update(QUIET)
    for number in stop_signals():
        signal.signal(number, _end_by_signal)
    try:
        command()
    except Exception as error:
        from pipeline.report.errors import print_error

        sys.exit(print_error(error))
    finally:
        sys.stdout.flush()  # here at the latest it is found out that nobody reads it
    sys.exit(EXIT_OK)


def _end_by_signal(number: int, frame: object) -> NoReturn:
    sys.exit(128 + (signal.SIGTERM if number == signal.SIGHUP else number))  # a closed terminal counts as SIGTERM
