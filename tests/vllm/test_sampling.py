"""What a request may ask of vLLM's server beside an answer: a stream, an end, several answers, seeds, beams, scores."""

import json
import urllib.request
from importlib.util import find_spec

import pytest
import torch

from tests.vllm.cases import EXAMPLES
from tests.vllm.test_server import about, started, uri

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")]
CORNERS = about(uri((EXAMPLES / "corners.png").read_bytes()), question="What is in the bottom left corner?")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with started(tmp_path_factory.mktemp("server")) as (address, *_):
        yield address


def post(address: str, **body) -> bytes:
    body = {"model": "flashsloth", "messages": CORNERS, "temperature": 0, "max_tokens": 8} | body
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read()


def texts(address: str, **body) -> list[str]:
    return [choice["message"]["content"] for choice in json.loads(post(address, **body))["choices"]]


def test_a_stream_is_the_answer_in_pieces(address):
    events = [line[6:] for line in post(address, stream=True).decode().splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events]
    assert ["".join(pieces)] == texts(address)


def test_a_text_ends_an_answer(address):
    (whole,) = texts(address)
    (begun,) = texts(address, stop=[whole.strip()[2:]])
    assert begun == whole[: whole.index(whole.strip()[2:])]


def test_seeds_bring_the_same_answers_again(address):
    unsure = [{"role": "user", "content": "What is this?"}]  # without an image
    drawn = [texts(address, messages=unsure, n=4, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


@pytest.fixture(scope="module")
def whole():
    """The model, its inputs for the same question, and what makes text of tokens."""
    from transformers_flashsloth import DEFAULT_CHECKPOINT, FlashSlothForConditionalGeneration, FlashSlothProcessor

    processor = FlashSlothProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT, dtype=torch.float32)
    content = [{"type": "image", "path": str(EXAMPLES / "corners.png")}, CORNERS[0]["content"][1]]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return model, inputs, processor


def test_beams_begin_with_what_generate_finds(address, whole):
    model, inputs, processor = whole
    output = model.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=8)
    expected = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    found = texts(address, n=3, use_beam_search=True)
    assert found[0].strip() == expected and len(set(found)) == 3


def test_log_probabilities_are_the_models(address, whole):
    model, inputs, _ = whole
    with torch.no_grad():
        expected = model(**inputs).logits[0, -1].log_softmax(-1).topk(3).values
    first = json.loads(post(address, logprobs=True, top_logprobs=3))["choices"][0]["logprobs"]["content"][0]
    assert [top["logprob"] for top in first["top_logprobs"]] == pytest.approx(expected.tolist(), abs=2e-3)
