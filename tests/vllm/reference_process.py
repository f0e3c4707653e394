"""
Answers of `generate`, in a process of its own, as vLLM changes the classes of decoders:
`python reference_process.py CASES ANSWERS [ADAPTER]`.

Cases are JSON: `{"checkpoint", "dtype", "cases": [{"messages", "image_hd"}]}`, images as paths. Writes the tokens of
each answer with their log probabilities, and the tokens without EmbQ, so that a test can see that it matters.
"""

import json
import sys
from pathlib import Path

import torch

from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothProcessor

MAX_NEW_TOKENS = 8


def answers(model, processor, cases: list[dict]) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens of each answer, and their log probabilities."""
    found, logprobs = [], []
    for case in cases:
        inputs = processor.apply_chat_template(
            case["messages"],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"image_hd": case.get("image_hd", False)},
        )
        options = {"return_dict_in_generate": True, "output_scores": True}  # without placeholders
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, **options)
        tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        found.append(tokens)
        steps = [scores[0].float().log_softmax(-1) for scores in output.scores]
        logprobs.append([step[token].item() for step, token in zip(steps, tokens, strict=True)])
    return found, logprobs


def main(cases: str, out: str, adapter: str | None = None) -> None:
    given = json.loads(Path(cases).read_text())
    torch.set_num_threads(1)
    model = FlashSlothForConditionalGeneration.from_pretrained(given["checkpoint"], dtype=given.get("dtype", "float32"))
    if adapter:
        model.load_adapter(adapter)
    processor = FlashSlothProcessor.from_pretrained(given["checkpoint"])
    found, logprobs = answers(model, processor, given["cases"])
    report = {"answers": found, "logprobs": logprobs}
    for module in model.model.embq_modules:
        torch.nn.init.zeros_(module.up_proj.weight)
        torch.nn.init.zeros_(module.up_proj.bias)
    report["without EmbQ"], _ = answers(model, processor, given["cases"])
    Path(out).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
