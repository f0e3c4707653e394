"""What test_peft.py runs in a process of its own: `python adapter_process.py ADAPTER INPUTS LOGITS`."""

import sys

import torch
from transformers import AutoModelForImageTextToText

from transformers_flashsloth import FlashSlothForConditionalGeneration


def main(adapter: str, inputs: str, logits: str) -> None:
    assert "peft" not in sys.modules, "importing the package imports PEFT"
    model = AutoModelForImageTextToText.from_pretrained(adapter).eval()
    assert type(model) is FlashSlothForConditionalGeneration
    with torch.no_grad():
        torch.save(model(**torch.load(inputs)).logits, logits)

    with torch.device("meta"):
        model = FlashSlothForConditionalGeneration(model.config)
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        del sys.modules[name]
    from peft import LoraConfig, get_peft_model

    get_peft_model(model, LoraConfig())  # a ValueError if the default targets are not known


if __name__ == "__main__":
    main(*sys.argv[1:])
