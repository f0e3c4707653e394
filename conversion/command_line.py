"""How the commands of this directory end: with what they did, or with one line that says what was wrong."""

import sys
from collections.abc import Callable

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging


def run(main: Callable[[], str]) -> None:
    """Prints what `main` returns; on bad input prints one line and exits with 2, when interrupted exits with 130."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # the commands have their own
    try:
        sys.stdout.write(f"{main()}\n")
    except (OSError, ValueError, StrictDataclassError) as error:
        reason = error.__cause__ if isinstance(error, StrictDataclassError) else error
        sys.stderr.write(f"error: {' '.join(str(reason).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
