"""The command line: its commands, and the one place where errors become exit codes.

stdout is data, stderr is talk; with --json the last line of stdout is one JSON object, also when a command fails.
torch and the daemon are imported by the commands that use them: `edge-cl status` is no learner.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final
from urllib.parse import quote

import typer
from rich.console import Console
from rich.live import Live

from edge_cl import config as configuration
from edge_cl import running
from edge_cl.cli_bridge import bridge_app
from edge_cl.cli_check import check
from edge_cl.cli_evaluate import evaluate
from edge_cl.cli_export import export
from edge_cl.cli_label import label
from edge_cl.cli_snapshots import snapshots_app
from edge_cl.cli_state import purge, state_app
from edge_cl.console import DEFAULT_STATE, AsJson, ConfigFile, Overrides, SourceUrl, StateDir, data, draw, say
from edge_cl.errors import ConfigError, Exit
from edge_cl.exits import explain
from edge_cl.intake import urls_of
from edge_cl.service.dashboard import plan_table, render
from edge_cl.service.status import Status, Summary, blank
from edge_cl.service.summary import summary
from edge_cl.signals import Signals

LINE_EVERY_S: Final = 1.0  # JSON lines of `run`: enough for a log, little enough for a month of it
FRAMES_PER_S: Final = 4
CURVES: Final = ("prequential_history", "exam_history", "plan")  # left out of lines: who keeps them has them

app = typer.Typer(
    help="Learn from a live sensor stream without forgetting, inside a fixed budget of memory and time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug of ours shows Python's own traceback
)
config_app = typer.Typer(help="Check, show and explain the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(snapshots_app, name="snapshots")
app.add_typer(state_app, name="state")
app.add_typer(bridge_app, name="bridge")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends in SystemExit with the exit code, or in the traceback of a bug of ours."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for a bar, not a traceback
    try:
        app(arguments, prog_name="edge-cl")
    except Exception as exc:
        ending = explain(exc)
        if ending is None:
            raise
        _fail(exc, *ending, as_json="--json" in arguments)
        sys.exit(ending.code)


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=lambda on: _version_and_exit(on)),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def run(
    config: ConfigFile = None,
    state: StateDir = DEFAULT_STATE,
    source: SourceUrl = None,
    once: Annotated[bool, typer.Option("--once", help="End with a finite source instead of waiting for more.")] = False,
    samples: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after N samples of this run.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of a new learner and of a simulated source.")] = 0,
    speed: Annotated[
        str | None, typer.Option(metavar="X", help="Times real time, or max: for simulated and recorded sources.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run the daemon: predict, learn, consolidate, publish snapshots. SIGINT or SIGTERM ends it; the next run goes on.

    On a terminal it shows a dashboard, elsewhere JSON lines.
    """
    settings = _settings(config, overrides)
    urls = urls_of(source or settings.source)
    signals = Signals().install()  # before the seconds that torch takes to load
    from edge_cl.daemon import Daemon

    show = _JsonLines() if as_json or not sys.stdout.isatty() else _Screen()
    daemon = Daemon(
        settings,
        state,
        source_url=urls if speed is None else [_with_speed(url, speed) for url in urls],
        seed=seed,
        once=once,
        samples=samples,
        on_status=show,
        signals=signals,
    )
    with show:
        result: Summary = daemon.run()
    if as_json:
        data(result)
    else:
        export_it = f"{_program()} export --state {shlex.quote(str(state))} --out model.onnx"
        draw(summary(result, next_step=export_it if result["snapshot"] else ""), to_stderr=not sys.stdout.isatty())


@app.command()
def status(
    state: StateDir = DEFAULT_STATE,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking until the daemon ends or Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the daemon on a state directory is doing, or its last known state and exit 3 if none runs."""
    if watch:
        _watch(state, as_json=as_json)
    pid, last = running.look(state)
    if as_json:
        data({**last, "running": pid is not None})
    elif pid is not None or last["updated_s"] is not None:
        draw(render(last))
    if pid is None:
        say(f"error: no daemon runs on {state}\nhint: edge-cl run --state {state}")
        raise typer.Exit(Exit.NOT_RUNNING)
    if refused := last["durable"]["refused"]:
        say(f"error: nothing is acknowledged: {refused}\nhint: it answers on, and learns again once the disk does")
        raise typer.Exit(Exit.IO)


@app.command()
def consolidate(
    state: StateDir = DEFAULT_STATE,
    timeout: Annotated[float, typer.Option(min=0.0, metavar="S", help="Seconds to wait for it to be done.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Tell the running daemon to consolidate now and to publish a snapshot; waits until it has."""
    now = running.consolidate(state, timeout)
    if as_json:
        data({"consolidations": now["consolidations"], "snapshot": now["snapshot"]})
    else:
        say(f"consolidation {now['consolidations']} done, snapshot: {now['snapshot'] or 'none'}")


app.command()(export)


app.command()(check)
app.command()(evaluate)
app.command()(purge)
app.command()(label)


@config_app.command("check")
def config_check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The file; ./config.yaml by default.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a configuration is right: exit 0, or 78 with every mistake as FILE:LINE: key: what is wrong."""
    chosen = configuration.chosen(file or config)
    configuration.resolve(chosen, overrides or ())
    if as_json:
        data({"ok": True, "file": None if chosen is None else str(chosen), "problems": []})
    else:
        say(f"{chosen or 'built-in defaults'}: ok")


@config_app.command("show")
def config_show(config: ConfigFile = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the values in force, each with where it comes from; the output is a valid configuration."""
    resolved = configuration.resolve(configuration.chosen(config), overrides or ())
    if as_json:
        data({"config": resolved.config.model_dump(mode="json"), "origins": dict(resolved.origins)})
    else:
        typer.echo(configuration.as_yaml(resolved))


@config_app.command("sample")
def config_sample() -> None:
    """Print a complete configuration with every key explained, all at their defaults."""
    typer.echo(configuration.SAMPLE.read_text(encoding="utf-8"), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    typer.echo(json.dumps(configuration.Config.model_json_schema(), indent=2))


class _JsonLines:
    """Prints a status as a JSON line once a second, and at once when there is news; the plan goes to stderr, once."""

    def __init__(self) -> None:
        self.due_s = 0.0
        self.news: tuple[str, str] | None = None
        self.planned = False

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, status: Status) -> None:
        if status["plan"] and not self.planned:
            self.planned = True
            draw(plan_table(status["plan"], status["budget_bytes"]), to_stderr=True)
        now_s, news = time.monotonic(), (status["state"], status["message"])
        if news != self.news or now_s >= self.due_s:
            self.news, self.due_s = news, now_s + LINE_EVERY_S
            data({name: value for name, value in status.items() if name not in CURVES})


class _Screen:
    """Shows the latest status on the terminal's other screen, drawn by a thread of its own: no learning step waits."""

    def __init__(self) -> None:
        self.status = blank()
        self.planned = False
        self.live = Live(
            get_renderable=lambda: render(self.status, full_screen=True),
            console=Console(highlight=False),
            screen=True,
            refresh_per_second=FRAMES_PER_S,
        )

    def __enter__(self) -> None:
        pass  # the live screen starts with the first status, so that an error before it stays visible

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def __call__(self, status: Status) -> None:
        self.status = status
        if status["plan"] and not self.planned:
            self.planned = True
            draw(plan_table(status["plan"], status["budget_bytes"]))
            self.live.start()


def _settings(config: Path | None, overrides: Sequence[str] | None) -> configuration.Config:
    chosen = configuration.chosen(config)
    say(f"config: {chosen or 'built-in defaults'}")
    return configuration.resolve(chosen, overrides or ()).config


def _with_speed(url: str, speed: str) -> str:
    target, _, query = url.partition("?")
    options = [option for option in query.split("&") if option and not option.startswith("speed=")]
    return f"{target}?{'&'.join([*options, f'speed={quote(speed)}'])}"


def _watch(state: Path, *, as_json: bool) -> None:
    try:
        if as_json or not sys.stdout.isatty():
            while (seen := running.look(state))[0] is not None:
                data({**seen[1], "running": True})
                time.sleep(LINE_EVERY_S)
        else:
            with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
                while (seen := running.look(state))[0] is not None:
                    live.update(render(seen[1], full_screen=True), refresh=True)
                    time.sleep(1 / FRAMES_PER_S)
    except KeyboardInterrupt:
        raise typer.Exit(Exit.OK) from None


def _program() -> str:
    """How this program was called, so that what it suggests can be typed as it stands."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{shlex.quote(min(sys.executable, os.path.relpath(sys.executable), key=len))} -m edge_cl"
    return "edge-cl"


def _version_and_exit(on: bool) -> None:
    if on:
        typer.echo(f"edge-cl {version('edge-cl')}")
        raise typer.Exit


def _fail(exc: Exception, code: Exit, message: str, hint: str, *, as_json: bool) -> None:
    problems = exc.problems if isinstance(exc, ConfigError) else []
    for problem in problems:
        say(str(problem))
    n = len(problems)
    say(f"error: {message}" if not problems else f"error: {n} mistake{'s' if n > 1 else ''} in the configuration")
    if hint:
        say(f"hint: {hint}")
    if as_json:
        found = [{"file": p.name, "line": p.line, "key": p.key, "what": p.what, "got": p.got} for p in problems]
        data(
            {
                "error": message,
                "hint": hint,
                "exit_code": int(code),
                **({"ok": False, "problems": found} if found else {}),
            }
        )


if __name__ == "__main__":
    main()
