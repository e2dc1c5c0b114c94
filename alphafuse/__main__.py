"""Entry point of `python -m alphafuse` and of the installed command; a Ctrl-C ends it with one line at any time."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from alphafuse.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("alphafuse: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
