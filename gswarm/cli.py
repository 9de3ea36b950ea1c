"""The command line: one command is built from one action of the catalogue; nothing else is imported."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gswarm.errors import ExitCode, GswarmError, InvalidError

if TYPE_CHECKING:
    from datetime import datetime

FORMATS = ("table", "json", "yaml")
PROGRAM = "gswarm"


@dataclass(slots=True)
class Globals:
    """Options that every command takes, before or after its name."""

    host: str | None = None
    token_file: Path | None = None
    output: str = "table"
    from_: Path | None = None
    at: str | None = None
    timeout: float | None = None
    wait: bool = True
    yes: bool = False
    dry_run: bool = False
    request_id: str = ""


class ReaderLeft(Exception):
    """Who read standard output went away (| head)."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around writes to standard output: tells a reader that left from every other broken pipe."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderLeft from None


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code. Nothing raises out of it but SystemExit of child modes."""
    try:
        code = _run(list(arguments))
        with writing():
            sys.stdout.flush()
        return code
    except GswarmError as error:
        say(f"error: {error}")
        return error.code
    except KeyboardInterrupt:
        say("interrupted")
        return ExitCode.INTERRUPTED
    except ReaderLeft:
        # Not our failure, but nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.OK
    except Exception as error:
        return _crash(error)


def say(text: str) -> None:
    """A message for a person, on standard error."""
    sys.stderr.write(f"{PROGRAM}: {text}\n")
    sys.stderr.flush()


def _crash(error: Exception) -> int:
    """An error we did not foresee: one line, the rest in a file."""
    import tempfile
    import traceback

    fd, path = tempfile.mkstemp(prefix="gswarm-crash-", suffix=".txt")
    with os.fdopen(fd, "w") as file:
        traceback.print_exception(error, file=file)
    say(f"error: something unforeseen went wrong: {type(error).__name__}: {error}. The details are in {path}")
    return ExitCode.FAILED


def _run(words: list[str]) -> int:
    from gswarm.index import HELP, ROOM_OF

    options = Globals()
    words = _leading_options(words, options)
    if options.at and options.from_ is None:
        raise InvalidError("--at is a time in a recording", next="name one with --from", field="at")
    if not words or words[0] in ("--help", "-h", "help"):
        sys.stdout.write(HELP)
        return ExitCode.OK
    if words[0] == "--version":
        from gswarm import __version__

        sys.stdout.write(f"gswarm {__version__}\n")
        return ExitCode.OK
    if words[0] == "completion":
        from gswarm.completion import script

        sys.stdout.write(script(words[1:]))
        return ExitCode.OK
    if words[0] not in ROOM_OF:
        from gswarm.names import near

        raise InvalidError(f"there is no command {words[0]!r}", next=near(words[0], ROOM_OF) or "see gswarm --help")
    return _main(words, options, ROOM_OF[words[0]])


_LEADING = {
    "--host": "host",
    "--token-file": "token_file",
    "--output": "output",
    "-o": "output",
    "--from": "from_",
    "--at": "at",
}


def _leading_options(words: list[str], options: Globals) -> list[str]:
    """Take the options before the command; the rest of the words comes back."""
    while words and words[0].partition("=")[0] in _LEADING:
        flag, given, value = words[0].partition("=")
        words = words[1:]
        if not given:
            if not words:
                raise InvalidError(f"{flag} needs a value")
            value, words = words[0], words[1:]
        name = _LEADING[flag]
        if name == "output" and value not in FORMATS:
            raise InvalidError(f"--output is {value!r}", next=f"one of {', '.join(FORMATS)}")
        setattr(options, name, Path(value) if name in ("token_file", "from_") else value)
    return words


def _main(words: list[str], options: Globals, room: str) -> int:
    import typer

    # Typer carries its own click; its public exceptions are the way to the rest of them.
    usage_error: Any = typer.BadParameter.__base__
    try:
        code = build(room, options).main(words, prog_name=PROGRAM, standalone_mode=False)
    except usage_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(error.ctx.get_help() + "\n")
            return ExitCode.USAGE
        what, _, meant = " ".join(str(error.format_message()).split()).rstrip(".").partition(". Did you mean ")
        raise InvalidError(what, next=f"did you mean {meant}" if meant else _hint(error)) from None
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.Exit as error:
        return error.exit_code
    return code if isinstance(code, int) else ExitCode.OK


def _hint(error: Any) -> str:
    if error.ctx is None:
        return "see gswarm --help"
    return f"see {error.ctx.command_path} --help"


def build(room: str, options: Globals) -> Any:
    """A click command tree of one room, made with Typer."""
    import typer

    from gswarm.catalogue import room_actions

    groups: dict[str, typer.Typer] = {"": _app(typer)}
    for action in room_actions(room):
        *path, verb = action.name.split()
        parent = ""
        for part in path:
            name = f"{parent} {part}".strip()
            if name not in groups:
                from gswarm.facegen import ABOUT

                groups[name] = _app(typer)
                groups[parent].add_typer(groups[name], name=part, help=ABOUT.get(part, ""))
            parent = name
        help_text = action.doc
        if action.examples:
            help_text += "\n\n\b\nExamples:\n" + "\n".join(f"  {line}" for line in action.examples)
        groups[parent].command(verb, help=help_text, short_help=action.summary)(wrapper(action, options))
    return typer.main.get_group(groups[""])


def _app(typer: Any) -> Any:
    return typer.Typer(
        add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )


def wrapper(action: Any, options: Globals) -> Callable[..., int]:
    """The plain function that Typer sees: the action's parameters plus those every command has."""
    import typer

    from gswarm.completion import completer

    parameters: list[inspect.Parameter] = []
    for p in action.parameters:
        extra: dict[str, Any] = {}
        if p.ref:
            extra["autocompletion"] = completer(p.ref)
        kind: Any = Literal[p.choices] if p.choices else p.type
        kind = list[kind] if p.many else kind
        if p.optional:
            kind = kind | None
        default: Any = (
            ... if p.required else (getattr(p.default, "value", p.default) if not p.many else list(p.default))
        )
        if p.positional:
            info = typer.Argument(default, help=p.doc, **extra)
        else:
            flags = [p.flag] if p.type is not bool else [f"{p.flag}/--no-{p.flag[2:]}"]
            info = typer.Option(
                default,
                *flags,
                *([p.short] if p.short else []),
                help=p.doc,
                show_default=not p.optional and p.default not in ("", [], False, 0),
                **extra,
            )
        parameters.append(inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind))
    taken = {p.flag for p in action.parameters}
    for name, kind, info in _common(action, options):
        if info.param_decls and info.param_decls[0].partition("/")[0] not in taken:
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind))

    names = {p.name for p in action.parameters}

    def command(**given: Any) -> int:
        for name, value in given.items():
            if name not in names:
                setattr(options, name.removeprefix("opt_"), value)
        from gswarm.execute import execute

        try:
            return execute(action, {name: given[name] for name in names}, options)
        except KeyboardInterrupt:  # Typer would end without a word
            say("interrupted")
            return ExitCode.INTERRUPTED

    # Typer reads both, and they must agree.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _common(action: Any, options: Globals) -> list[tuple[str, Any, Any]]:
    import typer

    found: list[tuple[str, Any, Any]] = [
        (
            "opt_output",
            Literal[FORMATS],
            typer.Option(
                options.output,
                "--output",
                "-o",
                help="how to print: table, json, yaml",
            ),
        ),
    ]
    if not action.local:
        found += [
            (
                "opt_host",
                str | None,
                typer.Option(options.host, "--host", help="host to talk to, HOST:PORT", show_default=False),
            ),
            (
                "opt_token_file",
                Path | None,
                typer.Option(options.token_file, "--token-file", help="file with the token", show_default=False),
            ),
            (
                "opt_timeout",
                float | None,
                typer.Option(None, "--timeout", help="give up after so many seconds (exit 124)"),
            ),
        ]
    if action.until:
        found.append(("opt_wait", bool, typer.Option(True, "--wait/--no-wait", help="wait until it is done")))
    if not action.read and not action.local:
        found.append(("opt_dry_run", bool, typer.Option(False, "--dry-run", help="check everything, change nothing")))
        found.append(
            (
                "opt_request_id",
                str,
                typer.Option(
                    "",
                    "--request-id",
                    help="id of the request; a retry with it is answered, not repeated",
                    show_default=False,
                ),
            )
        )
    if action.destructive:
        found.append(("opt_yes", bool, typer.Option(False, "--yes", "-y", help="do not ask")))
    return found


def render(result: object, output: str, *, returns: Any = None, now: datetime | None = None) -> None:
    """Print a result on standard output: data only. Ages count to `now`: the time of what is shown."""
    with writing():
        sys.stdout.write(_text(result, output, returns, now))


def render_piece(piece: object, output: str) -> None:
    """Print one of many pieces, one a line: JSON lines, or items of one YAML list."""
    if output == "table":
        render(piece, output)
        return
    from gswarm.codec import to_plain

    with writing():
        if output == "json":
            import json

            sys.stdout.write(json.dumps(to_plain(piece), ensure_ascii=False) + "\n")
        else:
            import yaml

            sys.stdout.write(str(yaml.safe_dump([to_plain(piece)], allow_unicode=True, sort_keys=False)))


def _text(result: object, output: str, returns: Any, now: datetime | None) -> str:
    if output == "table":
        return "" if result is None else "".join(f"{line}\n" for line in lines(result, returns, now))
    from gswarm.codec import to_plain

    data = to_plain(result)
    if output == "json":
        import json

        return json.dumps(data, ensure_ascii=False, indent=2) + "\n"
    import yaml

    return str(yaml.safe_dump(data, allow_unicode=True, sort_keys=False))


def lines(result: object, returns: Any = None, now: datetime | None = None) -> list[str]:
    """A result as text lines."""
    import dataclasses
    import typing

    from gswarm import views

    if isinstance(result, str):
        return result.splitlines()
    if isinstance(result, list | tuple):
        cls = type(result[0]) if result else next(iter(typing.get_args(returns)), None)
        if cls is None or not dataclasses.is_dataclass(cls):
            return [str(row) for row in result]
        width = None
        if sys.stdout.isatty():
            width = os.get_terminal_size(sys.stdout.fileno()).columns or None  # some terminals do not tell
        return views.table(result, cls, width, now=now)
    if hasattr(result, "lines"):
        return list(result.lines())
    if dataclasses.is_dataclass(result):
        pairs = views.detail(result)
        width = max(len(label) for label, _ in pairs)
        return [f"{label:<{width}}  {views.printable(value)}" for label, value in pairs]
    if isinstance(result, Mapping):
        return [f"{key}: {value}" for key, value in result.items()]
    return [str(result)]
