"""Start the program: `loraport` and `python -m loraport` alike."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line; a Ctrl-C while its modules are loaded is a sentence, too."""
    # Large tensors on large pages: a layer's matrices come and go, and to fetch them page by page is a seventh of the
    # work of a warm layer. PyTorch looks at this when it is loaded.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        from loraport.cli import main

        main()
    except KeyboardInterrupt:  # before `main` listens to signals
        sys.stderr.write("loraport: stopped by SIGINT before anything was begun\n")
        sys.exit(130)


if __name__ == "__main__":
    run()
