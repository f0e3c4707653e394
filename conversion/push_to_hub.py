"""
Uploads a checkpoint to the Hub, with its code and a model card: `flashsloth push`.

    python conversion/push_to_hub.py flashsloth-3.2b me/flashsloth-3.2b
"""

import sys

from flashsloth_command import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
