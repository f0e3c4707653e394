"""The page: a chat with images, in which answers grow, and what the model looked at."""

import json
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path

import gradio as gr
from PIL import Image

from ..asking.conversation import Conversation
from ..checkpoints.opening import InputError
from .models import Models
from .pictures import read_picture

MAX_IMAGES = 16
MAX_QUESTION_CHARACTERS = 20_000
MAX_FILE_SIZE = "20mb"
AS_THE_MODEL_SAYS = "as the model says"
IMAGE_HD = {AS_THE_MODEL_SAYS: None, "one view": False, "high definition": True}
REFUSED = "This cannot be asked"
EXAMPLES = Path(str(files("transformers_flashsloth") / "examples"))
DESCRIPTION = (
    "Ask about images: drop some beside the question. The small model of the package knows drawn scenes, emoji and "
    "simple figures, and answers in a word or two."
)


def build_app(models: Models) -> gr.Blocks:
    """The page, to `launch`. The history stays with the server, which says what was asked."""

    def answer(message: dict, history: list[dict], name: str, views: str) -> Iterator[str | dict]:
        try:
            conversation = _recalled(models.start(name, IMAGE_HD[views]), history)
            paths, question = message.get("files") or [], message.get("text") or ""
            _check(question, len(paths) + _number_of_images(conversation))
            said = ""
            for piece in conversation.stream(question, [read_picture(path) for path in paths]):
                said += piece
                yield said
            if not said:
                yield said
        except InputError as error:
            # As a message: where an error is raised, the page covers the chat.
            yield {"role": "assistant", "content": escape(str(error), quote=False), "metadata": {"title": REFUSED}}

    def explain(history: list[dict], name: str, views: str) -> list[Image.Image]:
        """Draws what the model looked at for the last question, a picture for each image."""
        try:
            return _recalled(models.start(name, IMAGE_HD[views]), history).explained_images()
        except InputError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error

    with gr.Blocks(title="FlashSloth", fill_height=True, analytics_enabled=False) as app:
        options = [
            gr.Dropdown(models.names, value=models.names[0], label="Model", render=False),
            gr.Radio(list(IMAGE_HD), value=AS_THE_MODEL_SAYS, label="Images are read in", render=False),
        ]
        chat = gr.ChatInterface(
            answer,
            multimodal=True,
            title="FlashSloth",
            description=DESCRIPTION,
            textbox=gr.MultimodalTextbox(
                file_types=["image"], file_count="multiple", placeholder="Ask about images", stop_btn=True
            ),
            additional_inputs=options,
            additional_inputs_accordion="Options",
            examples=_examples(),
            cache_examples=False,
            api_name="chat",
            concurrency_limit=4,
            delete_cache=(3600, 86_400),
            analytics_enabled=False,
        )
        button = gr.Button("What did the model look at?")
        looked_at = gr.Gallery(label="What the model looked at", columns=2, format="png")
        button.click(explain, [chat.chatbot_state, *options], looked_at, api_name="explain")
    return app


def _examples() -> list[list]:
    rows = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    return [[{"text": row["question"], "files": [str(EXAMPLES / row["image"])]}] for row in rows]


def _check(question: str, images: int) -> None:
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise InputError(f"the question has {len(question)} characters: at most {MAX_QUESTION_CHARACTERS} are read")
    if images > MAX_IMAGES:
        raise InputError(f"the conversation has {images} images: at most {MAX_IMAGES} are read")


def _number_of_images(conversation: Conversation) -> int:
    return sum(part["type"] == "image" for message in conversation.messages for part in message["content"])


def _recalled(conversation: Conversation, history: list[dict]) -> Conversation:
    """Takes up what the page has, without what was refused or never answered."""
    asked = []
    for message in history:
        content = message["content"] if isinstance(message["content"], list) else [message["content"]]
        if message["role"] == "user":
            asked = content
        elif asked and (message.get("metadata") or {}).get("title") != REFUSED:
            paths = [part.get("path") or part["file"]["path"] for part in asked if not _is_text(part)]
            conversation.recall(_text(asked), _text(content), [read_picture(path) for path in paths])
            asked = []
    return conversation


def _is_text(part: str | dict) -> bool:
    return isinstance(part, str) or "text" in part


def _text(parts: list[str | dict]) -> str:
    return "".join(part if isinstance(part, str) else part["text"] for part in parts if _is_text(part))
