"""vLLM's OpenAI server, as a user starts it: good and bad requests at once, and an engine that outlives them."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.vllm.cases import BASE, EXAMPLES, QUESTIONS
from tests.vllm.test_engine import run
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
MINUTES = 4


def uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def as_openai(messages: list[dict]) -> list[dict]:
    def part(given: dict) -> dict:
        if given["type"] == "text":
            return given
        return {"type": "image_url", "image_url": {"url": uri(open(given["image"], "rb").read())}}

    return [message | {"content": [part(given) for given in message["content"]]} for message in messages]


@contextmanager
def started(directory: Path, *options: str, **environment: str):
    """The address, the log and the process of a server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", DEFAULT_CHECKPOINT]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--served-model-name", "flashsloth", "--limit-mm-per-prompt", '{"image": 4}']
    log = directory / "log"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"} | environment
    with log.open("w") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(MINUTES * 60):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-5000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}", log, process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("server")) as (address, log, _):
        yield address, log


def ask(address: str, path: str = "chat/completions", **body) -> tuple[int, str]:
    """Status, and the answer or the reason."""
    body = {"model": "flashsloth", "temperature": 0, "max_tokens": 8} | body
    request = urllib.request.Request(
        f"{address}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            choice = json.load(response)["choices"][0]
            return 200, choice["message"]["content"] if "message" in choice else choice["text"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


FOX = uri((EXAMPLES / QUESTIONS[0]["image"]).read_bytes())


def about(*urls: str, question: str = "What is this?") -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


BAD = {
    "a typed placeholder": {"messages": about(FOX, question="What is <image>?")},
    "a typed query": {"messages": about(FOX, question="What is <learnable>?")},
    "a damaged image": {"messages": about(uri(b"no image"))},
    "too many images": {"messages": about(*[FOX] * 5)},
    "a long question": {"messages": about(FOX, question="word " * 2000)},
    "an image that is not there": {"path": "completions", "prompt": "USER: <image>\nWhat?<learnable> ASSISTANT:"},
    "a video": {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": FOX}}]}]},
}


def mixed_requests(tmp_path: Path) -> list[tuple[dict, str | None]]:
    """Thirty requests and what each is answered; None for those that are refused."""
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({"checkpoint": DEFAULT_CHECKPOINT, "cases": BASE}))
    expected = run("reference_process", cases, tmp_path / "reference.json")["answers"]
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_CHECKPOINT)
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in expected]
    good = [({"messages": as_openai(case["messages"])}, text) for case, text in zip(BASE, texts, strict=True)]
    mixed = [*good, *[(body, None) for body in BAD.values()], *good[:4]]
    assert len(mixed) == 30
    return mixed


def ask_at_once(address: str, requests: list[tuple[dict, str | None]]) -> None:
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: ask(address, **request[0]), requests))
    for (_, expected), (status, text) in zip(requests, answers, strict=True):
        if expected is None:
            assert 400 <= status < 500, text
        else:
            assert (status, text.strip()) == (200, expected)


def test_good_and_bad_requests_at_once(server, tmp_path):
    address, log = server
    requests = mixed_requests(tmp_path)
    ask_at_once(address, requests)
    assert ask(address, **requests[0][0])[0] == 200  # the engine lives
    said = log.read_text()
    assert "FlashSloth takes prompts whole: chunked prefill and prefix caching are off" in said


@pytest.mark.slow
def test_two_engines_in_parallel(tmp_path):
    options = ("--data-parallel-size", "2")
    with started(tmp_path, *options, VLLM_CPU_OMP_THREADS_BIND="0|1") as (address, *_):
        ask_at_once(address, mixed_requests(tmp_path))


@pytest.mark.slow
def test_an_engine_that_is_killed_ends_the_server(tmp_path):
    """Nobody waits for an answer that nobody computes."""
    with started(tmp_path) as (address, log, process):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        engine = next(int(pid) for pid in children if "Engine" in Path(f"/proc/{pid}/comm").read_text())
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, address, messages=about(FOX), max_tokens=200, ignore_eos=True) for _ in range(8)]
            time.sleep(1)
            os.kill(engine, signal.SIGKILL)
            for answer in asked:
                with suppress(OSError, http.client.HTTPException):  # cut off
                    assert answer.result(timeout=60)[0] >= 500
        assert process.wait(60) is not None
        assert "EngineDeadError" in log.read_text()
