"""The `flashsloth` command for `python -m` and `accelerate launch -m transformers_flashsloth`."""

import sys

from flashsloth_command import main

if __name__ == "__main__":
    sys.exit(main())
