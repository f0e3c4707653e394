"""Talks to the server over loopback HTTP with OpenAI's client."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread, Timer

import pytest
import uvicorn
from openai import APIStatusError, OpenAI

import flashsloth_command as command
from tests.encoded_images import data_uri, png_of
from tests.pages.blocks import blocks_of
from transformers_flashsloth.answering.features import FeatureStore
from transformers_flashsloth.asking.conversation import Conversation
from transformers_flashsloth.serving import server as serving
from transformers_flashsloth.serving.images import ImageReader
from transformers_flashsloth.serving.request import FIXED, HARMLESS, ChatRequest

EXAMPLES = Path(str(files("transformers_flashsloth") / "examples"))
QUESTIONS = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
ROOT = Path(__file__).parents[2]
# Of a server that is a process, however slowly it starts.
LIFETIME_SECONDS = 180


def chat_about(question: str, *urls: str) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


FOX = data_uri((EXAMPLES / "fox.png").read_bytes())
ABOUT_FOX = chat_about("What is this?", FOX)


@pytest.fixture(scope="module")
def conversation() -> Conversation:
    return Conversation([], device="cpu")


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A copy of the examples, with a neighbour that must not be read."""
    directory = tmp_path_factory.mktemp("served") / "examples"
    shutil.copytree(EXAMPLES, directory)
    shutil.copy(EXAMPLES / "fox.png", directory.parent / "secret.png")
    return directory


@contextmanager
def serving_of(conversation: Conversation, directory: Path, features: FeatureStore | None = None) -> Iterator[int]:
    """The port of a server in a thread of this process."""
    app = serving.build_app("flashsloth", conversation, ImageReader(directory, private_urls=True), features)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", log_config=None))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(conversation, directory):
    """The port of a server that keeps features, as `flashsloth serve` does."""
    with serving_of(conversation, directory, FeatureStore(10**8)) as port:
        yield port


@pytest.fixture(scope="module")
def client(port):
    with client_of(port) as client:
        yield client


def client_of(port: int) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)


def answer(client: OpenAI, messages: list[dict] = ABOUT_FOX, **options) -> str:
    options = {"model": "flashsloth", "messages": messages} | options
    if not options.get("stream"):
        return client.chat.completions.create(**options).choices[0].message.content.strip()
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**options)]
    assert chunks[-1].finish_reason == "stop"
    return "".join(chunk.delta.content or "" for chunk in chunks).strip()


@pytest.fixture(scope="module")
def expected(conversation) -> list[str]:
    """What the model answers to each example without a server."""
    return [generated(conversation, example["question"], EXAMPLES / example["image"]) for example in QUESTIONS]


def generated(
    conversation: Conversation, question: str, *images: Path, max_new_tokens: int = 50, **processor_kwargs
) -> str:
    content = [*({"type": "image", "path": str(image)} for image in images), {"type": "text", "text": question}]
    inputs = conversation.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=processor_kwargs,
    )
    output = conversation.model.generate(**inputs, max_new_tokens=max_new_tokens)
    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    return conversation.processor.decode(new_tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("stream", [False, True])
def test_answers_about_images_in_the_request(client, expected, stream):
    for example, text in zip(QUESTIONS[:4], expected, strict=False):
        url = data_uri((EXAMPLES / example["image"]).read_bytes())
        assert answer(client, chat_about(example["question"], url), stream=stream) == text


def test_a_stream_grows(client, expected):
    url = data_uri((EXAMPLES / QUESTIONS[3]["image"]).read_bytes())
    chunks = client.chat.completions.create(
        model="flashsloth", messages=chat_about(QUESTIONS[3]["question"], url), stream=True
    )

    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]

    assert "".join(pieces).strip() == expected[3] and len(pieces) > 1


@pytest.mark.parametrize("form", ["fox.png", "{}/fox.png", "file://{}/fox.png"])
def test_answers_about_allowed_files(client, expected, directory, form):
    assert answer(client, chat_about("What is this?", form.format(directory))) == expected[0]


def test_answers_about_urls(client, expected, directory):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=directory)) as website:
        Thread(target=website.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{website.server_address[1]}/fox.png"

        assert answer(client, chat_about("What is this?", url)) == expected[0]
        website.shutdown()


def test_several_images_turns_and_no_image(client, conversation):
    both = [EXAMPLES / "fox.png", EXAMPLES / "apples.png"]
    urls = [data_uri(path.read_bytes()) for path in both]
    question = "How many apples are there?"

    assert answer(client, chat_about(question, *urls)) == generated(conversation, question, *both)
    assert answer(client, chat_about("What is this?")) == generated(conversation, "What is this?")
    reply = client.chat.completions.create(model="flashsloth", messages=ABOUT_FOX).choices[0].message
    turns = [{"role": "system", "content": "Be brief."}, *ABOUT_FOX, reply, {"role": "user", "content": "And now?"}]
    assert answer(client, turns)


def test_counts_tokens_and_says_why_it_ended(client):
    whole = client.chat.completions.create(model="flashsloth", messages=ABOUT_FOX)
    cut = client.chat.completions.create(model="flashsloth", messages=ABOUT_FOX, max_tokens=1)
    cut_anew = client.chat.completions.create(model="flashsloth", messages=ABOUT_FOX, max_completion_tokens=1)

    assert (whole.choices[0].finish_reason, cut.choices[0].finish_reason) == ("stop", "length")
    assert cut.usage.completion_tokens == cut_anew.usage.completion_tokens == 1
    assert whole.usage.prompt_tokens == cut.usage.prompt_tokens > 16
    assert whole.model == "flashsloth"


def test_answers_end_with_the_context(client, conversation):
    words = chat_about("word " * 660)

    completion = client.chat.completions.create(model="flashsloth", messages=words, max_tokens=2048)

    context = conversation.model.config.text_config.max_position_embeddings
    assert context / 2 < completion.usage.prompt_tokens < completion.usage.total_tokens <= context


def test_stop_strings(client, expected):
    where = chat_about(QUESTIONS[3]["question"], QUESTIONS[3]["image"])

    assert answer(client, where, stop=expected[3].split()[0]) == expected[3].split()[0]
    assert answer(client, where, stop=["日本", "never"]) == expected[3]


def test_a_temperature_samples_and_a_seed_repeats(client):
    unclear = chat_about("What is this?")

    hot = [answer(client, unclear, temperature=2, seed=seed) for seed in range(6)]

    assert len(set(hot)) > 1
    assert answer(client, unclear, temperature=2, seed=5) == hot[5]
    greedy = answer(client, unclear)
    assert answer(client, unclear, temperature=0) == answer(client, unclear, temperature=1e-30) == greedy


def test_lists_only_its_model(client):
    assert [model.id for model in client.models.list()] == ["flashsloth"]


SPLIT_PLACEHOLDER = [{"type": "text", "text": "<im"}, {"type": "text", "text": "age>"}]
BAD_MESSAGES = {
    "file outside": (chat_about("What?", "../secret.png"), 400, "the operator allows"),
    "system file": (chat_about("What?", "file:///etc/passwd"), 400, "the operator allows"),
    "no image": (chat_about("What?", data_uri(b"no image")), 400, "image 1 is no image"),
    "cut image": (chat_about("What?", FOX, FOX[:3002]), 400, "image 2 is damaged"),
    "no base64": (chat_about("What?", "data:image/png;base64,???"), 400, "`data:` URI"),
    "no server": (chat_about("What?", "http://127.0.0.1:1/fox.png"), 400, "cannot be downloaded"),
    "many images": (chat_about("What?", *[FOX] * 17), 400, "17 images: at most 16"),
    "image bomb": (chat_about("What?", data_uri(png_of(60_000, 60_000))), 400, "image 1 is too large"),
    "image placeholder": (chat_about("What is <image>?", FOX), 400, "'<image>'"),
    "query placeholder": (chat_about("What is <learnable>?", FOX), 400, "'<learnable>'"),
    "split placeholder": ([{"role": "user", "content": SPLIT_PLACEHOLDER}], 400, "'<image>'"),
    "end of answer": (chat_about("What?</s>"), 400, "'</s>'"),
    "long question": (chat_about("word " * 3000), 400, "the model reads at most 2047"),
    "very long question": (chat_about("word " * 100_000), 400, "200000 bytes"),
    "no messages": ([], 422, "messages"),
    "no content": ([{"role": "user"}], 422, "messages.0.content"),
    "number as content": ([{"role": "user", "content": 7}], 422, "messages.0.content"),
    "no role": ([{"content": "What?"}], 422, "messages.0.role"),
    "other role": ([{"role": "tool", "content": "What?"}], 422, "messages.0.role"),
    "no turns": ([*ABOUT_FOX, *ABOUT_FOX], 400, "must stand"),
    "answer last": ([*ABOUT_FOX, {"role": "assistant", "content": "fox"}], 400, "user message at the end"),
    "image of the system": ([{"role": "system", "content": ABOUT_FOX[0]["content"]}, *ABOUT_FOX], 400, "image"),
    "video": ([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}], 422, "'video_url'"),
    "image without URL": ([{"role": "user", "content": [{"type": "image_url"}]}], 422, "image_url"),
    "a message that is none": (["What?"], 422, "messages.0"),
}  # fmt: skip
BAD_OPTIONS = {
    "unknown model": ({"model": "gpt"}, 400, "'flashsloth'"),
    "huge max_tokens": ({"max_tokens": 10**9}, 400, "context is 2048"),
    "huge max_completion_tokens": ({"max_completion_tokens": 10**30}, 400, "context is 2048"),
    "no max_tokens": ({"max_tokens": 0}, 422, "max_tokens"),
    "word as max_tokens": ({"max_tokens": "many"}, 422, "max_tokens"),
    "cold": ({"temperature": -1}, 422, "temperature"),
    "no top_p": ({"top_p": 0}, 422, "top_p"),
    "huge seed": ({"seed": 2**70}, 422, "seed"),
    "empty stop": ({"stop": ""}, 422, "stop"),
    "frequency penalty": ({"frequency_penalty": -1}, 422, "frequency_penalty"),
    "template": ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, 422, "chat_template_kwargs"),
    "generation config": ({"extra_body": {"generation_config": '{"num_beams": 999}'}}, 422, "generation_config"),
    "several answers": ({"n": 5000}, 400, "`n` is 5000, but this server cannot do that: it gives one answer"),
    "JSON": ({"response_format": {"type": "json_object"}}, 400, "it answers in plain text. Leave the field out"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "look"}}]}, 400, "it calls no tools"),
    "a tool": ({"tool_choice": "required"}, 400, "it calls no tools"),
    "token bias": ({"logit_bias": {"999999": 1}}, 400, "it does not change the scores of tokens"),
    "probabilities": ({"logprobs": True, "top_logprobs": 3}, 400, "it returns no probabilities"),
    "presence penalty": ({"presence_penalty": 1.5}, 400, "`frequency_penalty` only"),
    "sound": ({"modalities": ["text", "audio"]}, 400, "it answers in text"),
    "reasoning": ({"reasoning_effort": "high"}, 400, "without reasoning"),
    "an unknown field": ({"extra_body": {"top_k": 5}}, 422, "top_k"),
}
BAD = {name: ({"messages": messages}, *refusal) for name, (messages, *refusal) in BAD_MESSAGES.items()} | BAD_OPTIONS


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused(client, name, stream):
    options, status, reason = BAD[name]

    with pytest.raises(APIStatusError) as error:
        answer(client, stream=stream, **options)

    assert error.value.status_code == status and reason in str(error.value)


def test_fields_that_ask_for_what_is_done_anyway(client, conversation):
    options = {
        "n": 1,
        "response_format": {"type": "text"},
        "logprobs": False,
        "presence_penalty": 0,
        "tools": [],
        "tool_choice": "auto",
        "user": "somebody",
        "metadata": {"for": "tests"},
    }
    completion = client.chat.completions.create(model="flashsloth", messages=ABOUT_FOX, **options)
    assert completion.choices[0].message.content.strip() == "fox"


def test_every_field_of_openai_is_decided():
    """What OpenAI's client can send is read, refused with its reason, or known to say nothing of the answer."""
    from openai.types.chat import completion_create_params

    fields = {*completion_create_params.CompletionCreateParamsBase.__annotations__}
    fields -= {"prompt_cache_retention", "prompt_cache_options", "verbosity", "moderation"}  # unknown to this server
    assert len(fields) > 25
    assert not fields - ChatRequest.model_fields.keys() - FIXED.keys() - HARMLESS


BAD_BODIES = {
    "empty": b"",
    "cut": b"{",
    "list": b"[]",
    "no text": b"\xff",
    "deep": b"[" * 100_000,
    "long number": b"1" * 10_000,
    "surrogate as field": b'{"\\ud800": 1}',
    "surrogate in a list": b'["\\ud800"]',
    "surrogate as model": b'{"model": "\\ud800", "messages": [{"role": "user", "content": "What?"}]}',
    "surrogate as question": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "no number": b'{"messages": [{"role": "user", "content": "What?"}], "temperature": NaN}',
    "of unknown length": iter([b"{}"]),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bodies_that_no_client_sends(port, name):
    assert 400 <= post(port, "/v1/chat/completions", BAD_BODIES[name]) < 500


def test_large_bodies_are_not_read(port):
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", str(serving.MAX_BODY_BYTES + 1))
    connection.endheaders()

    assert connection.getresponse().status == 413


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/v1/completions", "/v1/responses", "/docs", "/"])
def test_other_paths_are_closed(port, path):
    assert post(port, path, b"{}") == 404


def post(port: int, path: str, body) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def ask_many(client: OpenAI, expected: list[str], count: int, clients: int) -> None:
    """Sends good and bad requests side by side, and holds each answer against what it should be."""
    good = [
        ({"messages": chat_about(example["question"], url), "stream": stream}, text)
        for example, text in zip(QUESTIONS, expected, strict=True)
        for url in (example["image"], data_uri((EXAMPLES / example["image"]).read_bytes()))
        for stream in (False, True)
    ]
    bad = [(options, status) for options, status, _ in BAD.values()]
    choose = random.Random(0)
    requests = [choose.choice(good if number % 2 else bad) for number in range(count)]

    def outcome(request: dict):
        try:
            return answer(client, **request)
        except APIStatusError as error:
            return error.status_code

    with ThreadPoolExecutor(clients) as pool:
        outcomes = list(pool.map(outcome, [options for options, _ in requests]))
    assert outcomes == [wanted for _, wanted in requests]


def test_good_and_bad_requests_side_by_side(client, expected):
    ask_many(client, expected, count=40, clients=4)

    assert answer(client) == expected[0]


@pytest.mark.slow
def test_many_good_and_bad_requests_side_by_side(client, expected):
    ask_many(client, expected, count=200, clients=8)

    assert answer(client) == expected[0]


def test_clients_that_go_away(client, port, expected):
    for _ in range(3):
        client.chat.completions.create(model="flashsloth", messages=ABOUT_FOX, stream=True).close()
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        body = json.dumps({"messages": ABOUT_FOX})
        connection.request("POST", "/v1/chat/completions", body=body, headers={"Content-Type": "application/json"})
        connection.close()

    assert answer(client) == expected[0]


def test_the_page_on_serving_serves_until_interrupted(capsys):
    blocks = [block.code for block in blocks_of(ROOT / "docs/serving.md")]
    (arguments,) = [block.removeprefix("flashsloth ") for block in blocks if block.startswith("flashsloth serve")]
    (snippet,) = [block for block in blocks if "OpenAI" in block]
    with subprocess.Popen(
        [sys.executable, "-m", "transformers_flashsloth", *arguments.split(), "--host", "127.0.0.1", "--port", "0"],
        cwd=EXAMPLES,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = Timer(LIFETIME_SECONDS, process.kill)
        watchdog.start()
        try:
            address = next(match[0] for line in process.stderr if (match := re.search(r"http://[\d.:]+", line)))
            exec(snippet.replace("http://localhost:8000", address), {})
            process.send_signal(signal.SIGINT)
            process.stderr.read()
            assert process.wait(timeout=30) in (0, 130)
        finally:
            watchdog.cancel()
            process.kill()

    assert re.fullmatch(r" \w+( \w+)?\n", capsys.readouterr().out)


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr("transformers_flashsloth.serving.command.is_serve_available", lambda: False)

    assert command.main(["serve"]) == 2

    assert capsys.readouterr().err.endswith('pip install "transformers-flashsloth[serve]"\n')


@pytest.mark.parametrize("arguments", [["./missing"], ["--allow-files", "./missing"], ["--device", "abacus"]])
def test_bad_arguments_end_in_one_line(arguments, capsys):
    assert command.main(["serve", *arguments]) == 2

    err = capsys.readouterr().err
    assert Path(arguments[-1]).name in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [([], True), (["--no-private-urls"], False), (["--host", "0.0.0.0"], False),
     (["--host", "0.0.0.0", "--private-urls"], True)],
)  # fmt: skip
def test_private_urls_are_for_clients_on_this_machine(arguments, allowed, monkeypatch):
    arguments_of_app = []
    monkeypatch.setattr(serving, "Conversation", lambda *args, **kwargs: None)
    monkeypatch.setattr(serving, "build_app", lambda *arguments: arguments_of_app.append(arguments))
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: None)

    assert command.main(["serve", *arguments]) == 0

    name, _, images, features = arguments_of_app[0]
    assert (name, images.private_urls, images.directory) == ("flashsloth", allowed, None)
    assert features.max_bytes == 512 * 10**6
