"""What a request for a chat completion may hold."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field


class TextPart(BaseModel):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where an image is."""

    url: str


class ImagePart(BaseModel):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
StopString = Annotated[str, Field(min_length=1, max_length=100)]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class Message(BaseModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], Field(max_length=100), BeforeValidator(_as_parts)]


# Fields that say nothing of the answer; the usage that `stream_options` can ask for comes in any case.
HARMLESS = {"metadata", "prediction", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
HARMLESS |= {"stream_options"}
# Fields that are taken as long as they ask for what this server does anyway: these values, and what it does.
FIXED = {
    "audio": ([None], "it answers in text"),
    "function_call": ([None, "none"], "it calls no functions"),
    "functions": ([None, []], "it calls no functions"),
    "logit_bias": ([None, {}], "it does not change the scores of tokens"),
    "logprobs": ([None, False], "it returns no probabilities"),
    "modalities": ([None, ["text"]], "it answers in text"),
    "n": ([None, 1], "it gives one answer to a request"),
    "parallel_tool_calls": ([None, True, False], "it calls no tools"),
    "presence_penalty": ([None, 0], "it knows `frequency_penalty` only"),
    "reasoning_effort": ([None, "none"], "it answers without reasoning beforehand"),
    "response_format": ([None, {"type": "text"}], "it answers in plain text"),
    "tool_choice": ([None, "none", "auto"], "it calls no tools"),
    "tools": ([None, []], "it calls no tools"),
    "top_logprobs": ([None, 0], "it returns no probabilities"),
    "web_search_options": ([None], "it does not search"),
}


def check_fields(body: dict) -> dict:
    """
    The fields of a request that `ChatRequest` reads.

    Raises:
        KeyError: naming fields that this server does not know.
        ValueError: for a field that asks for something else than this server does.
    """
    unknown = body.keys() - ChatRequest.model_fields.keys() - FIXED.keys() - HARMLESS
    if unknown:
        raise KeyError(", ".join(sorted(unknown)))
    for name, (values, what) in FIXED.items():
        if name in body and body[name] not in values:
            told = json.dumps(body[name])[:100]
            raise ValueError(f"`{name}` is {told}, but this server cannot do that: {what}. Leave the field out.")
    return {name: value for name, value in body.items() if name in ChatRequest.model_fields}


class ChatRequest(BaseModel):
    """
    OpenAI's fields that are served, none of which reaches into the chat template or the kinds of generation; and two of
    our own, how the request's images are read where that is not as the server says: `image_hd`, and `visual_tokens`,
    which a view becomes.
    """

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    stream: bool | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(gt=-1, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopString] | None, Field(max_length=4), BeforeValidator(_as_list)] = None
    image_hd: bool | None = None
    visual_tokens: Annotated[int, Field(ge=1)] | None = None
