"""What test_remote_code.py runs in a process of its own: `python remote_code_process.py SAVED SAVED_AGAIN OTHERS`."""

import json
import sys

import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A sloth."}]},
    {"role": "user", "content": [{"type": "text", "text": "Is it fast?"}]},
]


def answer(directory: str, **options) -> list[list[int]]:
    """Prompt and greedy answer of a checkpoint."""
    processor = AutoProcessor.from_pretrained(directory, **options)
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    image = torch.arange(3 * 50 * 60).reshape(3, 50, 60) % 251
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    model = AutoModelForImageTextToText.from_pretrained(directory, **options)
    return model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None).tolist()


def main(directory: str, again: str, *others: str) -> None:
    sys.modules["transformers_flashsloth"] = None  # from now on importing it fails
    base = AutoModel.from_pretrained(directory, trust_remote_code=True)
    AutoModelForImageTextToText.from_pretrained(directory, trust_remote_code=True).save_pretrained(again)
    AutoProcessor.from_pretrained(directory, trust_remote_code=True).save_pretrained(again)
    report = {
        "base": [type(base).__module__.split(".")[0], type(base).__name__],
        "answer": answer(directory, trust_remote_code=True),
        "answer of what was saved again": answer(again, trust_remote_code=True),
        "answers of others": [answer(other, trust_remote_code=True) for other in others],
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
