"""``llpf``: parse the command line, run a command, turn errors into one line and an exit status."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import LLPFError, one_line
from . import analyze, bench, demo, find, info, lower, recipes, report, train, verify

_COMMANDS = {
    "train": train,
    "find": find,
    "lower": lower,
    "verify": verify,
    "analyze": analyze,
    "report": report,
    "info": info,
    "recipes": recipes,
    "demo": demo,
    "bench": bench,
}

_POSITIONAL = ("run", "name", "starts", "destinations", "models", "analysis", "runs")

_DESCRIPTION = "Find, certify and draw low-loss paths between neural networks."
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
#: Set to 1, an unexpected exception is raised with its traceback.
_TRACEBACK = "LLPF_TRACEBACK"
#: Environment variables and their values. An empty variable counts as not set.
_VARIABLES = {
    "LLPF_BACKEND": ("auto", "eager", "cpp", "cuda", "triton"),
    "LLPF_ISA": ("plain", "avx2", "avx512"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    It is 0 for success, 1 where a path is not connected or did not arrive, 2 for an error (one line on stderr), 130
    after Ctrl-C. An unexpected exception is an error too, unless the environment variable LLPF_TRACEBACK is 1: then it
    is raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    before, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        _check_variables()
        return _run(arguments)
    except LLPFError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader (head, less) has ended. Without this Python prints another error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        return _fail(f"{file}{error.strerror or error}")
    except KeyboardInterrupt:
        print(f"llpf: interrupted{_how_to_resume(arguments)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get(_TRACEBACK) == "1":
            raise
        return _fail(f"internal: {type(error).__name__}: {error}; set {_TRACEBACK}=1 for the traceback")
    finally:
        warnings.showwarning = before


class Parser(argparse.ArgumentParser):
    """argparse with LLPFError in place of usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise LLPFError(f"{_wrong_value(message)}; see {self.prog} --help")


def _wrong_value(message: str) -> str:
    """argparse's message, with the words of the other errors where a value has the wrong type."""
    message = re.sub(r"^argument (\S+): invalid user_path value: .*", r"\1 is empty; name a file or a folder", message)
    message = re.sub(r"^argument (\S+): invalid (\w+) value: '(.*)'$", r"\1 must be \2, got \3", message)
    return message.removeprefix("argument ")


def parser(chosen: str | None = None, analysis: str | None = None) -> Parser:
    """The parser; with ``chosen``, only that command has its options, the others their name and help.

    ``analysis`` chooses one of llpf analyze in the same way. The options of all analyses take 10 ms.
    """
    top = Parser(prog="llpf", description=_DESCRIPTION, allow_abbrev=False)
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        if name == "analyze" and chosen == name:
            analyze.add_arguments(sub, analysis)
        elif chosen in (None, name):
            module.add_arguments(sub)
    return top


def _run(arguments: list[str]) -> int:
    top = parser(*arguments[:2]) if arguments else parser("")
    if not arguments:
        top.print_help()
        return EXIT_ERROR
    for argument in arguments:
        # argparse drops this value: the option would have none.
        if argument.startswith("--") and argument.endswith("=--"):
            raise LLPFError(f"{argument[:-3]} must not be '--'")
    parsed, unknown = top.parse_known_args(arguments)
    if unknown:
        command = [parsed.command, *([parsed.analysis] if getattr(parsed, "analysis", None) else [])]
        raise LLPFError(f"unrecognized arguments: {' '.join(unknown)}; see llpf {' '.join(command)} --help")
    _check_numbers(parsed)
    try:
        return _COMMANDS[parsed.command].run(parsed)
    except SystemExit as error:
        raise LLPFError(
            f"the user's code ended the program (exit status {error.code}); let it raise an error"
        ) from error


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise LLPFError where a whole number does not fit into 64 bits."""
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise LLPFError(f"{_as_typed(name)} must lie between -2**63 and 2**63, got {number}")


def _check_variables() -> None:
    for name, words in _VARIABLES.items():
        given = os.environ.get(name)
        if given and given not in words:
            raise LLPFError(f"the environment variable {name} is {given!r}; unset it, or set it to {_either(words)}")


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _version() -> str:
    from .. import __version__

    return f"llpf_fast {__version__}"


def _fail(message: str) -> int:
    print(f"llpf: error: {one_line(message)}", file=sys.stderr)
    return EXIT_ERROR


def _as_typed(name: str) -> str:
    return name.upper() if name in _POSITIONAL else f"--{name.replace('_', '-')}"


def _how_to_resume(arguments: list[str]) -> str:
    if arguments[:1] == ["analyze"]:
        return "; the same command goes on from what was measured"
    if arguments[:1] not in (["find"], ["lower"], ["train"]):
        return ""
    again = [*arguments, *(() if "--resume" in arguments else ("--resume",))]
    return f"; continue with: llpf {shlex.join(again)}"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"llpf: warning: {one_line(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
