"""VLMEvalKit asks a server: what its `GPT4V` wrapper posts is answered over loopback as `flashsloth ask` answers it."""

import base64
import io
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from transformers_flashsloth.asking.conversation import Conversation
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

uvicorn = pytest.importorskip("uvicorn")
serving = pytest.importorskip("transformers_flashsloth.serving.server")
images = pytest.importorskip("transformers_flashsloth.serving.images")

EXAMPLES = Path(DEFAULT_CHECKPOINT).parent / "examples"


@pytest.fixture(scope="module")
def api_base():
    app = serving.build_app(
        "flashsloth", Conversation([], device="cpu"), images.ImageReader(EXAMPLES, private_urls=True)
    )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/chat/completions"
    server.should_exit = True
    thread.join(timeout=10)


def posted(api_base: str, parts: list[dict], max_tokens: int = 512, system_prompt: str | None = None) -> str:
    """The answer to a message of VLMEvalKit, with the wrapper's fields and headers, pictures as JPEG in base64."""
    content = []
    for part in parts:
        if part["type"] == "text":
            content.append({"type": "text", "text": part["value"]})
            continue
        jpeg = io.BytesIO()
        Image.open(part["value"]).convert("RGB").save(jpeg, format="JPEG")
        url = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": content})
    body = {"model": "flashsloth", "messages": messages, "n": 1, "temperature": 0, "max_tokens": max_tokens}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-none"}
    request = urllib.request.Request(api_base, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"].strip()


def test_its_requests_are_answered(api_base):
    fox = {"type": "image", "value": str(EXAMPLES / "fox.png")}
    corners = {"type": "image", "value": str(EXAMPLES / "corners.png")}
    question = {"type": "text", "value": "What is this?"}
    assert posted(api_base, [fox, question]) == "fox"
    assert posted(api_base, [fox, corners, question])
    assert posted(api_base, [fox, question], system_prompt="Answer with a word.")


def test_its_own_longest_answer_is_taken_and_a_longer_one_refused(api_base):
    question = [{"type": "text", "value": "What is this?"}]
    assert posted(api_base, question, max_tokens=2048)
    with pytest.raises(urllib.error.HTTPError, match="Error 4"):
        posted(api_base, question, max_tokens=4096)
