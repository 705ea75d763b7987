"""The command line of the benchmark suite. Heavy imports stand in the commands, so that ``--help`` is quick."""

from __future__ import annotations

import datetime
import resource
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, cast

import click
from rich.console import Console

from benchmarks.cases import PROFILES, AnyCase, LimitsCase
from benchmarks.results import Results, ResultsError
from benchmarks.scenarios import SCENARIOS

if TYPE_CHECKING:
    from benchmarks.subjects.base import Subject

__all__ = ["main"]

DEFAULT_SUBJECTS = (
    "direct,cgw,cgw-tick0,nginx,haproxy,go,litellm,litellm-messages,portkey,"
    "redis-py-threads,redis-py-trio,redis-py-asyncio"
)
EPILOG = """\
Exit status: 0 for success; 1 when a comparison is past its tolerance, a goal is not met (with --strict), or nothing
could be measured; 2 for a wrong command line; 130 when interrupted. docs/benchmarks.md explains the figures.
"""
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


class DefaultsToRun(click.Group):
    """A group whose default command is ``run``: ``python -m benchmarks --scenario steady`` works."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=DefaultsToRun, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
def cli() -> None:
    """Measure cgw and other gateways: pinned to one core, in turn, under open-loop load.

    The default command is `run`; `python -m benchmarks run --help` lists its options.
    """


def _list_scenarios() -> str:
    width = max(map(len, SCENARIOS))
    return "\b\nScenarios:\n" + "\n".join(f"  {name:{width}}  {scenario.help}" for name, scenario in SCENARIOS.items())


def _list_profiles() -> str:
    return "\b\nProfiles:\n" + "\n".join(
        f"  {profile.name:6} {profile.rounds} rounds, windows of {profile.window_ms / 1000:g} s: {profile.help}"
        for profile in PROFILES.values()
    )


RUN_HELP = f"""Measure, print tables, and write the results as JSON (and a report beside it).

{_list_scenarios()}

{_list_profiles()}

\b
Subjects: direct (no gateway), cgw, cgw-tick0 (without coalescing), cgw-relay (its transport alone), nginx, haproxy, go,
litellm (its chat completions), litellm-messages (/v1/messages), litellm-raw (passing through), portkey.
The scenario limits has subjects of its own: cgw (its limiter alone), redis-py-threads (no Trio), redis-py-trio
(each call in a thread), redis-py-asyncio.
Subjects that are not installed are left out; benchmarks/README.md says how to install each.
"""


@cli.command(help=RUN_HELP, epilog=EPILOG)
@click.option(
    "--profile", type=click.Choice(list(PROFILES)), default="short", show_default=True, help="Duration and load."
)
@click.option(
    "--scenario", "scenarios", multiple=True, metavar="NAME[,NAME]", help="Run only these scenarios (default: all)."
)
@click.option(
    "--case", "case_filter", metavar="TEXT", help="Run only cases with these parameters, for example streams=200."
)
@click.option(
    "--subjects", metavar="NAME,NAME", default=DEFAULT_SUBJECTS, show_default=True, help="The subjects to measure."
)
@click.option(
    "--subject",
    "commands",
    multiple=True,
    metavar="NAME=COMMAND",
    help="Add any proxy. {port}, {upstream_host}, {upstream_port} and {path} in COMMAND are replaced by their values. "
    "NAME=DIRECTORY adds the cgw of another checkout, to measure it beside this one.",
)
@click.option("--rounds", type=click.IntRange(1, 1000), help="Number of rounds (default: the profile's).")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The results file (default: results/DATE.json).",
)
@click.option(
    "--tools",
    "tool_choice",
    type=click.Choice(["auto", "c", "python"]),
    default="auto",
    show_default=True,
    help="Language of the fake upstream and the load generator; auto: C if there is a compiler.",
)
@click.option(
    "--report/--no-report", "writes_report", default=True, show_default=True, help="Also write an HTML report."
)
def run(
    profile: str,
    scenarios: tuple[str, ...],
    case_filter: str | None,
    subjects: str,
    commands: tuple[str, ...],
    rounds: int | None,
    output: Path | None,
    tool_choice: str,
    writes_report: bool,
) -> int:
    from benchmarks.binaries import build_tools
    from benchmarks.limits.clients import CLIENTS
    from benchmarks.limits.measure import describe_versions
    from benchmarks.runner import RunPlan, find_subjects, run_plan
    from benchmarks.subjects.known import DIRECT
    from benchmarks.terminal import print_results, show_progress

    console = _console()
    cases = _pick_cases(profile, scenarios, case_filter)
    names, known = _pick_subjects(subjects, commands)
    try:
        tools = build_tools(cast(Literal["auto", "c", "python"], tool_choice))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    has_limits = [isinstance(case, LimitsCase) for case in cases]
    gateways = [name for name in names if name in known or name == DIRECT]
    found, versions, left_out = find_subjects([] if all(has_limits) else gateways, known)
    clients = [name for name in dict.fromkeys(names) if name in CLIENTS and any(has_limits)]
    if clients:
        versions = describe_versions(clients) | versions
    count = rounds or PROFILES[profile].rounds
    plan = RunPlan(
        cases=cases,
        subjects=found,
        clients=clients,
        rounds=count,
        profile=profile,
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        tools=tools,
    )
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False, highlight=False)
    console.print(
        f"{plan.steps} measurements, about {plan.seconds / 60:.0f} min; tools: {tools.description}", highlight=False
    )
    _raise_file_limit()
    with show_progress(console, plan.steps) as (on_step, on_measured):
        results = run_plan(plan, versions, left_out, on_step, on_measured)
    print_results(results, console)
    path = output or Path("results") / f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}.json"
    results.write(path)
    console.print(f"results: {path}", highlight=False, soft_wrap=True)
    if writes_report:
        _write_report(results, path.with_suffix(".html"), console)
    if "(interrupted)" in results.left_out:
        return EXIT_INTERRUPTED
    return 0 if any(not m.metrics.failed for m in results.measurements) else EXIT_FAILURE


def _pick_subjects(subjects: str, commands: Sequence[str]) -> tuple[list[str], dict[str, Subject]]:
    """Return the names that were asked for, and all known gateways by name, including those of ``commands``."""
    from benchmarks.limits.clients import CLIENTS
    from benchmarks.subjects.known import DIRECT, known_subjects, parse_subject

    known = known_subjects()
    names = [name.strip() for name in subjects.split(",") if name.strip()]
    for text in commands:
        try:
            added = parse_subject(text)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="'--subject'") from error
        known[added.name] = added
        names.append(added.name)
    unknown = [name for name in names if name not in known and name not in CLIENTS and name != DIRECT]
    if unknown:
        raise click.BadParameter(f"unknown subjects: {', '.join(unknown)}; --help lists all", param_hint="'--subjects'")
    return names, known


def _raise_file_limit() -> None:
    """Raise the limit of open files as far as allowed. Subjects inherit it; 1000 streams need two descriptors each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _pick_cases(profile: str, scenarios: tuple[str, ...], case_filter: str | None) -> list[AnyCase]:
    names = [name.strip() for text in scenarios for name in text.split(",") if name.strip()] or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise click.BadParameter(
            f"unknown scenarios: {', '.join(unknown)}; --help lists all", param_hint="'--scenario'"
        )
    cases = [case for name in dict.fromkeys(names) for case in SCENARIOS[name].build(PROFILES[profile])]
    if case_filter:
        wanted = case_filter.split()
        cases = [
            case for case in cases if set(wanted) <= {f"{name}={value}" for name, value in case.parameters.items()}
        ]
        if not cases:
            raise click.BadParameter(f"no case has {case_filter}", param_hint="'--case'")
    return cases


def _write_report(results: Results, path: Path, console: Console) -> None:
    from benchmarks.html_report import render_report

    path.write_text(render_report(results), encoding="utf-8")
    console.print(f"report: {path}", highlight=False, soft_wrap=True)


def _console() -> Console:
    """Return a console as wide as the terminal, or 140 columns without one, which the tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=140)


@cli.command(epilog=EPILOG)
@click.option("--stream", "is_stream", is_flag=True, help="Count streams of 20 events instead of whole answers.")
@click.option("--top", type=click.IntRange(1), default=30, show_default=True, help="Rows to print.")
@click.option("--by", type=click.Choice(["file", "function"]), default="function", show_default=True)
@click.option(
    "--checkout",
    type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True),
    help="The cgw to count (default: this one).",
)
def bytecodes(is_stream: bool, top: int, by: str, checkout: Path | None) -> int:
    """Count the bytecodes and frames of an exchange: exact, also on a busy machine. Needs Python 3.12."""
    import tempfile

    from benchmarks.binaries import REPOSITORY, build_tools
    from benchmarks.bytecodes.measure import count_bytecodes
    from benchmarks.machine import pick_cores
    from benchmarks.processes import ChildError
    from benchmarks.terminal import print_bytecodes

    try:
        with tempfile.TemporaryDirectory(prefix="cgw-bytecodes-") as folder:
            counts = count_bytecodes(
                build_tools(), pick_cores(), Path(folder), is_stream=is_stream, checkout=checkout or REPOSITORY
            )
    except (ChildError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    print_bytecodes(counts, cast(Literal["file", "function"], by), top)
    return 0


RESULTS_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@cli.command(epilog=EPILOG)
@click.argument("results_file", type=RESULTS_FILE)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The HTML file (default: beside the results).",
)
def report(results_file: Path, output: Path | None) -> int:
    """Write an HTML report of a results file: one file with plots and tables, without external resources."""
    _write_report(Results.read(results_file), output or results_file.with_suffix(".html"), _console())
    return 0


@cli.command(epilog=EPILOG)
@click.argument("results_file", type=RESULTS_FILE)
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), required=True)
def plot(results_file: Path, output: Path) -> int:
    """Write the plot of CPU per event against streams as an SVG file."""
    from benchmarks.html_report import render_cpu_plot

    output.write_text(render_cpu_plot(Results.read(results_file)), encoding="utf-8")
    return 0


@cli.command(epilog=EPILOG)
@click.argument("results_file", type=RESULTS_FILE)
def show(results_file: Path) -> int:
    """Print the tables of a results file."""
    from benchmarks.terminal import print_results

    print_results(Results.read(results_file), _console())
    return 0


@cli.command(epilog=EPILOG)
@click.argument("before", type=RESULTS_FILE)
@click.argument("after", type=RESULTS_FILE)
@click.option("--tolerance", type=click.FloatRange(min=0), default=0.1, show_default=True, help="0.1: 10 % worse.")
@click.option(
    "--reference",
    metavar="NAME",
    help="The subject that others are divided by (default: go, nginx, haproxy or direct).",
)
@click.option(
    "--subjects", metavar="NAME,NAME", help="The subjects to compare (default: all whose names begin with cgw)."
)
@click.option("--tails", is_flag=True, help="Also compare p99, which varies most.")
def compare(
    before: Path, after: Path, tolerance: float, reference: str | None, subjects: str | None, tails: bool
) -> int:
    """Compare two runs by the ratios to a reference subject within each; exit 1 if one got worse than the tolerance."""
    from benchmarks.compare import compare_results, print_changes

    first, second = Results.read(before), Results.read(after)
    names = [name.strip() for name in subjects.split(",")] if subjects else None
    changes = compare_results(first, second, reference=reference, subjects=names, with_tails=tails)
    return EXIT_FAILURE if print_changes(changes, tolerance, _console()) else 0


@cli.command(epilog=EPILOG)
@click.argument("results_file", type=RESULTS_FILE)
@click.option("--strict", is_flag=True, help="Exit 1 when a goal is not met.")
def goals(results_file: Path, strict: bool) -> int:
    """Check a run against the project's goals: measured value, bound, met or not."""
    from benchmarks.goals import check_goals, print_goals

    verdicts = check_goals(Results.read(results_file))
    print_goals(verdicts, _console())
    return EXIT_FAILURE if strict and any(verdict.is_met is False for verdict in verdicts) else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = cli.main(arguments, prog_name="python -m benchmarks", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ResultsError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(EXIT_FAILURE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM like Ctrl-C: end every process that was started, keep the results so far."""
    raise KeyboardInterrupt
