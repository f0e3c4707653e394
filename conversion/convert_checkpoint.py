"""
Converts a checkpoint from the authors' format to this package's, or back: `flashsloth convert`.

    python conversion/convert_checkpoint.py Tongbo/FlashSloth-3.2B flashsloth-3.2b
    python conversion/convert_checkpoint.py flashsloth-3.2b theirs --to-authors-format
"""

import sys

from flashsloth_command import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
