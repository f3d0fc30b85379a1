"""Start the program: `loraport` and `python -m loraport` alike."""

from __future__ import annotations

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line; a Ctrl-C while its modules are loaded is a sentence, too."""
    try:
        from loraport.cli import main

        main()
    except KeyboardInterrupt:  # before `main` listens to signals
        sys.stderr.write("loraport: stopped by SIGINT before anything was begun\n")
        sys.exit(130)


if __name__ == "__main__":
    run()
