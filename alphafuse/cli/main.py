"""The command line: each command is a thin call of one public function with the same keywords.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done; 1 a check found something (`store verify`,
`data audit --strict`, `doctor`) or a clip got no answer; 2 a mistake of the user (one line: what is wrong, why, how
to fix it); 130 and 143 interrupted (finished work is kept); 141 the reader of the output closed it.
Heavy libraries are imported inside the commands, so that `--help` and completion are fast.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from alphafuse.errors import AlphafuseError
from alphafuse.system.interrupts import Terminated, heed_interrupts
from alphafuse.version import __version__

from . import completion as cli_completion
from . import doctor as cli_doctor
from .common import Commands, Context, print_error, walk

_cannot_load: ImportError | None = None
try:
    from . import answer as cli_answer
    from . import convert as cli_convert
    from . import data as cli_data
    from . import extract as cli_extract
    from . import heads as cli_heads
    from . import predict as cli_predict
    from . import report as cli_report
    from . import runs as cli_runs
    from . import similar as cli_similar
    from . import store as cli_store
except ImportError as error:  # a library is missing or broken; doctor still loads and names it
    _cannot_load = error

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell reports a command ended by Ctrl-C
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_NO_READER = 128 + 13  # SIGPIPE, which Windows lacks

SECTIONS = {
    "All in one": {
        "answer": "From a folder of clips to an answer, a report and a classifier.",
    },
    "Data": {
        "data": "Make, audit and split dataset roots; the demo needs no download.",
    },
    "Stage one: clips -> embeddings": {
        "extract": "Run the frozen encoders over clips once, cache the embeddings.",
        "store": "Inspect, verify, pack and export the cached embeddings.",
        "convert": "Turn original .pyth/.pth checkpoints into HuggingFace folders.",
    },
    "Stage two: embeddings -> answers": {
        "weigh": "How much each stream should weigh, with a confidence interval.",
        "contribute": "What each stream contributes, in bits and points.",
        "fit": "Train one experiment: a transform, a fusion, one or many seeds.",
        "table1": "The paper's six experiments beside the paper's own figures.",
        "sweep": "Accuracy against alpha, chosen on validation, tested once.",
        "compare": "Every stream, fusion, transform and control in one table.",
        "curve": "Accuracy against training clips per class; MTEB's protocol.",
        "evaluate": "Every metric of a run: mAP, AUC, calibration, per class.",
    },
    "See and use": {
        "runs": "List the trained runs, and which one is the best; pin one.",
        "predict": "Label clips with a trained run.",
        "similar": "Find the cached clips that look and sound most like a clip.",
        "report": "Write one self-contained html page of a root's runs.",
        "export": "Bundle a trained run into one folder.",
    },
    "This machine": {
        "doctor": "Check versions, devices, codecs, disk, hub and weights.",
        "completion": "Print the completion script of bash, zsh or fish.",
    },
}
EPILOG = """
\b
Environment:
  ALPHAFUSE_ROOT       --root of every command that has it.
  ALPHAFUSE_FIT_SEEDS  --seeds of fit. Every option has a variable
                       ALPHAFUSE_<COMMAND>_<OPTION>; the command line wins.
  HF_HOME              Folder of the models from the hub.
  HF_HUB_OFFLINE=1     Never connect to the hub.
  NO_COLOR=1           No colours; FORCE_COLOR=1: also when piped.

\b
Exit codes: 0 done, 1 a check found something or a clip got no answer, 2 a
mistake in the command, 130 interrupted (finished work is kept). Results go
to stdout, the rest to stderr; --json prints exactly one document.
"""


@click.group(
    cls=Commands,
    sections=SECTIONS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """How much should each stream weigh when frozen video and audio transformers are fused late?

    \b
    Example: the demo, offline and without any download
      alphafuse data demo --root demo
      alphafuse extract --split all --root demo
      alphafuse table1 --root demo
    """


def main() -> None:
    """Console entry point: runs the command and turns every user error into one line and an exit code."""
    heed_interrupts()
    stdout = sys.stdout
    try:
        cli.main(prog_name="alphafuse", standalone_mode=False)
    except AlphafuseError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(EXIT_MISTAKE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_hint = f" (see `{context.command_path} --help`)" if context else ""
        _fail(f"{_message(error)}{help_hint}")
    except (click.Abort, KeyboardInterrupt) as error:
        _interrupted(error, _kept())
    except SystemExit:
        if sys.stdout is not stdout:  # click replaces stdout and exits with 1 when its reader is closed
            _no_reader()
        raise
    except BrokenPipeError:
        _no_reader()
    except OSError as error:
        if _interrupt_of(error):
            _interrupted(error)
        _fail(f"{error.filename or 'disk'}: {error.strerror or error}: check the path, its rights and the free space")
    except Exception as error:
        if _interrupt_of(error):
            _interrupted(error)  # a library interrupted during its import raises an error of its own
        raise


def _message(error: click.ClickException) -> str:
    """Return click's message, or our own if an option is unknown or missing."""
    if isinstance(error, click.NoSuchOption):
        near = f" (did you mean '{error.possibilities[0]}'?)" if error.possibilities else ""
        files = [word for word in sys.argv[1:] if word.startswith("-") and Path(word).exists()]
        if files:
            return f"'{files[0]}' looks like an option: write ./{files[0]} for the file of that name"
        return f"unknown option '{error.option_name}'{near}"
    if isinstance(error, click.MissingParameter) and isinstance(error.param, click.Option):
        return f"missing option '{error.param.opts[0]}': {(error.param.help or '').removesuffix('.')}"
    message = error.format_message().removesuffix(".")
    if isinstance(error, click.BadParameter) and error.ctx is not None and error.param is not None:
        name = error.param.envvar
        typed = any(option.partition("=")[0] in error.param.opts for option in sys.argv)
        if isinstance(name, str) and os.environ.get(name) and not typed:
            message += f", from {name}"
    return message


def _interrupt_of(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the Ctrl-C or SIGTERM among the causes of an error; None if there is none."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _kept() -> str:
    """Return a hint for commands that resume; "" for the others."""
    resumes = sys.argv[1:2] in (["extract"], ["answer"]) or sys.argv[1:3] == ["data", "demo"]
    return "; finished work is kept, run the same command again to resume" if resumes else ""


def _interrupted(error: BaseException, more: str = "") -> NoReturn:
    is_terminated = isinstance(_interrupt_of(error), Terminated)
    print_error(f"{'terminated' if is_terminated else 'interrupted'}{more}")
    sys.exit(EXIT_TERMINATED if is_terminated else EXIT_INTERRUPTED)


def _no_reader() -> NoReturn:
    """Exit without a message when the reader of stdout (head, less) closes it; discard the rest of the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    sys.exit(EXIT_NO_READER)


def _fail(message: str) -> NoReturn:
    print_error(message)
    sys.exit(EXIT_MISTAKE)


def _name_variables() -> None:
    """Give every option an environment variable named after the option (click's own is named after the parameter)."""
    for path, command in walk(cli):
        command.context_class = Context
        for option in command.params:
            if isinstance(option, click.Option) and option.envvar is None and path:
                flag = max(option.opts, key=len).removeprefix("--")
                option.envvar = "_".join(("alphafuse", *path, flag)).replace("-", "_").upper()


if _cannot_load is None:
    for _command in (
        cli_answer.answer,
        cli_data.data,
        cli_extract.extract,
        cli_convert.convert,
        cli_store.store,
        cli_heads.weigh,
        cli_heads.fit,
        cli_heads.table1,
        cli_heads.sweep,
        cli_heads.compare,
        cli_heads.curve,
        cli_heads.contribute,
        cli_heads.evaluate,
        cli_runs.runs,
        cli_predict.predict,
        cli_predict.export,
        cli_similar.similar,
        cli_report.report,
    ):
        cli.add_command(_command)
else:
    cli.broken = f"this command can't be loaded ({_cannot_load}): `alphafuse doctor` says what is missing or broken"
for _command in (cli_doctor.doctor, cli_completion.completion):
    cli.add_command(_command)
_name_variables()
