"""
What answers requests: `generate` in a process of its own, one by one or in batches, and servers over HTTP.

    python -m benchmarks.serving_subjects CHECKPOINT THREADS    answers lines of JSON on its input, a round a line
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothImageProcessor, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

from .building import build
from .presets import flashsloth_config

STARTING_SECONDS = 900
# A round of requests: {"images": paths, "question", "new_tokens", "batch"}; its answer: {"first": seconds, "all"}.


def write_checkpoint(directory: Path, name: str, dtype: str, tiny: bool, layers: int | None = None) -> Path:
    """A preset with random weights, and the tokenizer of the small model in the package, whose ids are among its."""
    if (directory / "processor_config.json").exists():
        return directory
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_CHECKPOINT)
    config = flashsloth_config(name, tiny)
    config.image_token_id, config.query_token_id = tokenizer.convert_tokens_to_ids(["<image>", "<learnable>"])
    config.user_prefix_ids, config.query_init_token_id = [], None
    if tiny:  # kernels for CPUs want heads of 32, 64 ...
        for sizes in (config.text_config, config.vision_config):
            sizes.hidden_size, sizes.num_attention_heads, sizes.head_dim = 128, 4, 32
    config.embq_num_heads = 4 if tiny else config.embq_num_heads
    if layers:
        config.text_config.num_hidden_layers = layers
        config.text_config.layer_types = None
    with_dtype = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = build(lambda: FlashSlothForConditionalGeneration(config), "cpu")
    finally:
        torch.set_default_dtype(with_dtype)
    # Answers have the length that is asked for: no token ends one.
    model.generation_config.eos_token_id = config.text_config.eos_token_id = config.text_config.vocab_size - 1
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    height, width = config.view_size
    image_processor = FlashSlothImageProcessor(size={"height": height, "width": width})
    patch, queries = config.vision_config.patch_size, config.num_query_tokens
    processor = FlashSlothProcessor(
        image_processor,
        tokenizer,
        num_query_tokens=queries,
        patch_size=patch,
        pooling_window=config.pooling_window,
        chat_template=FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT).chat_template,
    )
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


class FirstToken(StoppingCriteria):
    """When the first token is known."""

    moment = None

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        self.moment = self.moment or time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def conversation(image: dict, question: str) -> list[dict]:
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


@torch.inference_mode()
def answer_round(model, processor, asked: dict) -> dict:
    """Answers requests that came all at once, `asked["batch"]` at a time."""
    begin, first = time.perf_counter(), []
    for start in range(0, len(asked["images"]), asked["batch"]):
        images = asked["images"][start : start + asked["batch"]]
        inputs = processor.apply_chat_template(
            [conversation({"type": "image", "path": path}, asked["question"]) for path in images],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        clock = FirstToken()
        model.generate(
            **inputs,
            max_new_tokens=asked["new_tokens"],
            min_new_tokens=asked["new_tokens"],
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        first += [clock.moment - begin] * len(images)
    return {"first": first, "all": time.perf_counter() - begin}


def environment(threads: int) -> dict[str, str]:
    """Of a process with so many threads; vLLM's get cores of their own, and 2 GB for keys and values on a CPU."""
    cores = "0" if threads == 1 else f"0-{threads - 1}"
    threads_and_memory = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "2"}
    return threads_and_memory | os.environ | {"OMP_NUM_THREADS": str(threads)}


class Generate:
    """`generate` in a process; `batch` None answers one by one."""

    def __init__(self, checkpoint: Path, threads: int):
        command = [sys.executable, "-m", "benchmarks.serving_subjects", str(checkpoint), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(threads)
        )
        self.process.stdout.readline()

    def ask(self, images: list[str], question: str, new_tokens: int, batch: int = 1) -> dict:
        asked = {"images": images, "question": question, "new_tokens": new_tokens, "batch": batch}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


class Server:
    """A server that speaks OpenAI's protocol, started by `command` and its port."""

    def __init__(self, command: list[str], threads: int, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, env=environment(threads)
            )
        for _ in range(STARTING_SECONDS):
            if self.process.poll() is not None:
                raise RuntimeError(f"The server ended before it answered: {log.read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.address}/v1/models", timeout=2) as models:
                    self.model = json.load(models)["data"][0]["id"]
                return
            except OSError:
                time.sleep(1)
        raise RuntimeError(f"The server did not start within {STARTING_SECONDS} s: {log.read_text()[-2000:]}")

    def ask(self, images: list[str], question: str, new_tokens: int, batch: int = 1) -> dict:
        """All at once, a thread each; answers of one token say when the first token is there."""
        begin = time.perf_counter()

        def one(url: str) -> float:
            body = {
                "model": self.model,
                "messages": conversation({"type": "image_url", "image_url": {"url": url}}, question),
                "max_tokens": new_tokens,
                "temperature": 0,
            }
            request = urllib.request.Request(
                f"{self.address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=3600) as response:
                response.read()
            return time.perf_counter() - begin

        with ThreadPoolExecutor(len(images)) as pool:
            ends = list(pool.map(one, images))
        return {"first": ends, "all": time.perf_counter() - begin}

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(120)


@contextmanager
def ending(subjects: dict):
    """Ends the subjects, whatever happens."""
    try:
        yield subjects
    finally:
        for subject in subjects.values():
            subject.end()


def main(checkpoint: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    model = FlashSlothForConditionalGeneration.from_pretrained(checkpoint, dtype="auto").eval()
    processor = FlashSlothProcessor.from_pretrained(checkpoint)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer_round(model, processor, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
