"""How the commands of this directory end: with what they did, or with one line that says what was wrong."""

import sys
from collections.abc import Callable

from transformers.utils import logging


def run(main: Callable[[], str]) -> None:
    """Prints what `main` returns and exits with 0; on bad input prints one line and exits with 2, interrupted with 130."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the commands have their own
    try:
        sys.stdout.write(f"{main()}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
