"""A Space with FlashSloth; MODELS names its checkpoints, separated by blanks."""

import os

from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT
from transformers_flashsloth.demo.app import MAX_FILE_SIZE, build_app
from transformers_flashsloth.demo.models import Models

demo = build_app(Models(os.environ.get("MODELS", DEFAULT_CHECKPOINT).split()))

if __name__ == "__main__":
    demo.launch(max_file_size=MAX_FILE_SIZE)
