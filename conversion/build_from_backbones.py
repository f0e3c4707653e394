"""
Makes a new, untrained FlashSloth from a decoder and a vision tower.

    python conversion/build_from_backbones.py new-flashsloth
    python conversion/build_from_backbones.py small --decoder microsoft/phi-1_5 --vision google/siglip-base-patch16-224

Decoder, head and vision tower keep their weights; pooling, projector, queries and embedded query module start as the
release starts them. Then train the projector on captions and everything on questions. DECODER and VISION are
directories or Hub ids; the new model is all that is in memory.
"""

import argparse
import sys
from pathlib import Path

from flashsloth_command import finish
from transformers_flashsloth.building.checkpoint import build_checkpoint
from transformers_flashsloth.checkpoints.opening import input_errors
from transformers_flashsloth.checkpoints.options import DTYPES

DECODER = "microsoft/phi-2"
VISION = "google/siglip-so400m-patch14-384"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("destination", metavar="DST", type=Path, help="directory that does not exist yet")
    parser.add_argument("--decoder", default=DECODER, help="directory or Hub id (default: %(default)s)")
    parser.add_argument("--vision", default=VISION, help="directory or Hub id (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--image-hd", action="store_true", help="read images in high definition")
    parser.add_argument("--seed", type=int, default=0, help="of the new parts (default: %(default)s)")
    for name in (
        "num_query_tokens",
        "pooling_window",
        "embq_layer",
        "embq_hidden_size",
        "embq_num_heads",
        "vision_feature_layer",
        "image_size",
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS, metavar="N")
    parser.add_argument("--pooling", default=argparse.SUPPRESS, help="attention, average or none")
    options = vars(parser.parse_args())
    destination = options["destination"]
    with input_errors():
        model = build_checkpoint(options.pop("destination"), options.pop("decoder"), options.pop("vision"), **options)
    print(f"Wrote a new FlashSloth of {model.num_parameters():,} parameters ({model.dtype}) to {destination}.")
    return 0


if __name__ == "__main__":
    sys.exit(finish(main))
