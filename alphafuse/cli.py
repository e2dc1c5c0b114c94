"""The command line: each command is a thin call of one public function with the same keywords.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 `store verify` or `data audit --strict`
found something, 2 a mistake of the user's (one line says what, why, and how to mend it), 130 and 143 interrupted (what
was done is kept).
Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys

import click

import alphafuse
from alphafuse.errors import AlphafuseError

from . import cli_bench, cli_data, cli_extract, cli_heads, cli_manners, cli_predict, cli_report

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT  # what a shell reports of a command that Ctrl-C ended
EXIT_TERMINATED = 128 + signal.SIGTERM


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(alphafuse.__version__)
def cli() -> None:
    """How much should each modality weigh when frozen video and audio transformers are fused late?

    \b
    The demo, offline and without any download:
      alphafuse data demo
      alphafuse extract --split all --root demo
      alphafuse table1 --root demo
    """


def main() -> None:
    """Console entry point: runs the command and turns every foreseen error into one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli.main(standalone_mode=False)
    except AlphafuseError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(EXIT_MISTAKE)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        help_hint = f" (see `{context.command_path} --help`)" if context else ""
        _fail(f"{error.format_message()}{help_hint}")
    except click.Abort:
        click.echo("alphafuse: interrupted; what was finished is kept, the same command goes on from there", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output (head, less) is gone
    except ImportError as error:
        if not _was_interrupted(error):
            raise
        click.echo("alphafuse: interrupted", err=True)  # transformers turns a Ctrl-C while it loads into an ImportError
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        _fail(f"{error.filename or 'disk'}: {error.strerror or error}: check the path, its rights and the free space")


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is among the causes of an error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(message: str) -> None:
    click.echo(f"alphafuse: {' '.join(message.split())}", err=True)
    sys.exit(EXIT_MISTAKE)


def _terminate(number: int, frame: object) -> None:
    click.echo("alphafuse: terminated; what was finished is kept, the same command goes on from there", err=True)
    sys.exit(EXIT_TERMINATED)


for _command in (
    cli_data.data,
    cli_extract.extract,
    cli_extract.convert,
    cli_extract.store,
    cli_heads.fit,
    cli_heads.table1,
    cli_heads.sweep,
    cli_heads.compare,
    cli_heads.evaluate,
    cli_predict.predict,
    cli_predict.export,
    cli_report.report,
    cli_bench.bench,
    cli_manners.doctor,
    cli_manners.completion,
):
    cli.add_command(_command)
