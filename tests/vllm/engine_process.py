"""Answers of vLLM offline, in a process of its own: `python engine_process.py CASES ANSWERS [OPTIONS AS JSON]`."""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

from PIL import Image
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from tests.vllm.reference_process import MAX_NEW_TOKENS

ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "block_size": 32,
    "distributed_executor_backend": "uni",
    "limit_mm_per_prompt": {"image": 4},
    "max_num_seqs": 32,
}


def as_openai(messages: list[dict]) -> list[dict]:
    """The messages as vLLM's chat takes them, images opened."""
    parts = {
        "text": lambda part: part,
        "image": lambda part: {"type": "image_pil", "image_pil": Image.open(part["image"]).convert("RGB")},
    }
    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": [parts[part["type"]](part) for part in message["content"]]}
        for message in messages
    ]


def main(cases: str, out: str, options: str = "{}") -> None:
    given, options = json.loads(Path(cases).read_text()), json.loads(options)
    adapters = options.pop("adapters", [None] * len(given["cases"]))
    llm = LLM(given["checkpoint"], **ENGINE | options)
    requests = {path: LoRARequest(path, number, path) for number, path in enumerate(sorted({*adapters} - {None}), 1)}
    sampling = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS, logprobs=0)
    found, logprobs = [None] * len(adapters), [None] * len(adapters)
    for hd in (False, True):
        chosen = [i for i, case in enumerate(given["cases"]) if case.get("image_hd", False) == hd]
        if chosen:
            outputs = llm.chat(
                [as_openai(given["cases"][i]["messages"]) for i in chosen],
                [sampling] * len(chosen),
                use_tqdm=False,
                mm_processor_kwargs={"image_hd": hd},
                lora_request=[requests.get(adapters[i]) for i in chosen] if requests else None,
            )
            for i, output in zip(chosen, outputs, strict=True):
                answer = output.outputs[0]
                found[i] = list(answer.token_ids)
                logprobs[i] = [step[token].logprob for step, token in zip(answer.logprobs, found[i], strict=True)]
    report = {"answers": found, "logprobs": logprobs}
    if "quantization" in options:
        (report["quantised"],) = llm.apply_model(quantised_parts)
    Path(out).write_text(json.dumps(report))


def quantised_parts(model) -> list[str]:
    """Parts of the model that have weights of one byte a number."""
    return sorted({name.split(".")[1] for name, weight in model.named_parameters() if weight.element_size() == 1})


if __name__ == "__main__":
    main(*sys.argv[1:])
