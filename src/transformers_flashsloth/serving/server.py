"""
The server of `transformers serve`, with one FlashSloth model, for clients that nobody knows.

It takes over chat completions, the list of models and the health check; its other paths, which load and unload models
among other things, are closed. This is the only file that knows `transformers.cli.serving` (5.19 to 5.x), whose classes
have public names but no promised interface.
"""

import asyncio
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerateManager, GenerationState, Modality

from ..answering.features import FeatureStore, with_features
from ..asking.conversation import Conversation, window_of
from ..checkpoints.opening import DEFAULT_CHECKPOINT, InputError
from .images import ImageReader
from .request import ChatRequest, ImagePart, TextPart, check_fields

OPEN_PATHS = ("/v1/chat/completions", "/v1/models", "/health")
MAX_BODY_BYTES = 32 * 2**20
# No context holds as much; it bounds what the tokenizer is given.
MAX_TEXT_BYTES = 200_000
MAX_MESSAGE_CHARACTERS = 500
DEFAULT_FEATURE_MB = 512
# Written where uvicorn writes, so that a line about images stands beside that of its request.
logger = logging.getLogger("uvicorn.error")


def serve_checkpoint(
    checkpoint: str | None = None,
    *,
    host: str = "localhost",
    port: int = 8000,
    directory: Path | None = None,
    private_urls: bool | None = None,
    feature_cache_mb: int | None = None,
    **loading,
) -> None:
    """
    Serves a model until interrupted.

    Args:
        checkpoint (`str`, *optional*): directory or Hub id, and what clients call the model; by default the one in the
            package, called "flashsloth".
        host (`str`): address to listen on.
        port (`int`): 0 for any that is free.
        directory (`Path`, *optional*): whose images clients may name.
        private_urls (`bool`, *optional*): as in [`ImageReader`]; by default whether only this machine can ask.
        feature_cache_mb (`int`, *optional*): most megabytes of images' features that are kept, so that an image is
            encoded once for all requests; by default 512, and 0 keeps none.
        loading: options of [`Conversation`].

    Raises:
        InputError: if one of these cannot be used.
    """
    if directory and not directory.is_dir():
        raise InputError(f"there is no directory {str(directory)!r} to allow files of")
    if private_urls is None:
        private_urls = host in ("localhost", "127.0.0.1", "::1")
    conversation = Conversation([], checkpoint=checkpoint or DEFAULT_CHECKPOINT, **loading)
    features = FeatureStore(10**6 * (DEFAULT_FEATURE_MB if feature_cache_mb is None else feature_cache_mb))
    app = build_app(checkpoint or "flashsloth", conversation, ImageReader(directory, private_urls), features)
    uvicorn.run(app, host=host, port=port)


def build_app(
    name: str, conversation: Conversation, images: ImageReader, features: FeatureStore | None = None
) -> FastAPI:
    """
    Returns the application of `transformers serve` with one model.

    Args:
        name (`str`): what clients call the model.
        conversation ([`Conversation`]): whose model and options are used.
        images ([`ImageReader`]): reads the images of requests.
        features ([`FeatureStore`], *optional*): keeps what the model makes of them; by default nothing is kept.
    """
    models = OneModel(name, conversation)
    state = BoundedGenerationState(FeatureStore(0) if features is None else features)
    # The handlers of closed paths differ between versions, and are never called.
    parameters = inspect.signature(build_server).parameters
    handlers = {parameter: None for parameter in parameters if parameter.endswith("_handler")}
    handlers["chat_handler"] = ChatHandler(
        models, state, images, chat_template_kwargs={"processor_kwargs": conversation.processor_kwargs}
    )
    app = build_server(models, generation_state=state, **handlers)

    @app.middleware("http")
    async def refuse_unread(request: Request, call_next):
        if request.url.path not in OPEN_PATHS:
            return _refusal(404, f"this server has the paths {', '.join(OPEN_PATHS)}")
        if "transfer-encoding" in request.headers:
            return _refusal(411, "the body needs a Content-Length")
        if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
            return _refusal(413, f"the body has more than {MAX_BODY_BYTES} bytes")
        return await call_next(request)

    @app.exception_handler(StarletteHTTPException)
    async def refuse(request: Request, error: StarletteHTTPException):
        return _refusal(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError):
        return _refusal(422, _explain(error))

    return app


def _refusal(status: int, message: str) -> JSONResponse:
    """A response in the form from which OpenAI's clients take the message."""
    message = message[:MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()  # JSON can hold what UTF-8 cannot
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status)


def _explain(error: ValidationError | RequestValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())


class ChatHandler(ChatCompletionHandler):
    """Checks what a client sends, and reads its images, before the handler of `transformers serve` sees it."""

    def __init__(self, models: "OneModel", state: "BoundedGenerationState", images: ImageReader, **kwargs):
        super().__init__(models, state, **kwargs)
        self.images = images

    async def handle_request(self, body: dict, request_id: str):
        """
        Answers a request.

        Raises:
            HTTPException: 422 for fields that are unknown or of the wrong kind, 400 for anything else that the client
                can mend.
        """
        try:
            return await super().handle_request(await self._checked(body), request_id)
        except ValidationError as error:
            raise HTTPException(422, _explain(error)) from error
        except (InputError, TemplateError, ValueError) as error:
            raise HTTPException(400, str(error)) from error

    async def _checked(self, body: dict) -> dict:
        try:
            request = ChatRequest.model_validate(check_fields(body))
        except KeyError as error:
            raise HTTPException(422, f"this server does not take the fields {error.args[0]}") from error

        longest = request.max_completion_tokens or request.max_tokens
        context = self.model_manager.context
        if longest is not None and longest > context:
            raise InputError(f"max_tokens is {longest}, but the model's context is {context} tokens")
        parts = [part for message in request.messages for part in message.content]
        if sum(len(part.text.encode()) for part in parts if part.type == "text") > MAX_TEXT_BYTES:
            raise InputError(f"the messages have more than {MAX_TEXT_BYTES} bytes of text")
        urls = [part.image_url.url for part in parts if part.type == "image_url"]
        images = iter(await asyncio.to_thread(self.images.read, urls))

        own = {"messages", "max_completion_tokens", "max_tokens", "image_hd", "visual_tokens"}
        options = request.model_dump(exclude=own, exclude_none=True) | self._reading(request)
        messages = [
            {"role": message.role, "content": [_stock_part(part, images) for part in message.content]}
            for message in request.messages
        ]
        return options | {"messages": messages, "max_tokens": longest}

    def _reading(self, request: ChatRequest) -> dict:
        """How the images of a request are read, in the words of the chat template."""
        reading = {} if request.image_hd is None else {"image_hd": request.image_hd}
        if request.visual_tokens is not None:
            reading["pooling_window"] = window_of(request.visual_tokens, self.model_manager.processor)
        if not reading:
            return {}
        return {"chat_template_kwargs": {"processor_kwargs": self.chat_template_kwargs["processor_kwargs"] | reading}}

    def _build_generation_config(self, body: dict, *args, **kwargs) -> GenerationConfig:
        # The one private name: upstream takes a temperature without sampling. Near 0 the logits would overflow.
        generation_config = super()._build_generation_config(body, *args, **kwargs)
        if "temperature" in body:
            generation_config.do_sample = body["temperature"] >= 0.01
        return generation_config


def _stock_part(part: TextPart | ImagePart, images: Iterator[Image.Image]) -> dict:
    """A part as the handler of `transformers serve` passes it on: where it has a URL, the processor takes an image."""
    if part.type == "text":
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": next(images)}}


class OneModel(ModelManager):
    """Has one model, which was loaded beforehand; the classes that upstream loads are those of transformers alone."""

    def __init__(self, name: str, conversation: Conversation):
        self.model, self.processor = conversation.model, conversation.processor
        super().__init__(force_model=name)

    @property
    def context(self) -> int:
        """Longest sequence, prompt and answer, in tokens."""
        return self.model.config.text_config.max_position_embeddings

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """Leaves the name as it is, without a revision."""
        return model_id

    def load_model_and_processor(self, *args, **kwargs):
        """Returns the model and its processor."""
        return self.model, self.processor

    @staticmethod
    def get_model_modality(*args, **kwargs) -> Modality:
        """Says that the model takes texts and images."""
        return Modality.VLM

    def get_gen_models(self, *args, **kwargs) -> list[dict]:
        """Lists the model, and nothing else that this machine may have."""
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "flashsloth"}]


class BoundedGenerationState(GenerationState):
    """Generates for one model."""

    def __init__(self, features: FeatureStore):
        super().__init__()
        self.manager = BoundedGenerateManager(features)

    def get_manager(self, *args, **kwargs) -> "BoundedGenerateManager":
        """Returns the one manager."""
        return self.manager


class BoundedGenerateManager(GenerateManager):
    """
    Ends answers where the context ends, finds stop strings, which needs the tokenizer, and encodes an image once for
    all requests.
    """

    def __init__(self, features: FeatureStore):
        super().__init__()
        self.features = features

    def generate_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
        """As upstream's."""
        _fit(gen_config, inputs, model)
        model = _Reusing(model, self.features)
        return super().generate_streaming(model, processor.tokenizer, inputs, gen_config, *args, **kwargs)

    async def generate_non_streaming(self, model, processor, inputs, gen_config, *args, **kwargs):
        """As upstream's."""
        _fit(gen_config, inputs, model)
        model = _Reusing(model, self.features)
        return await super().generate_non_streaming(model, processor.tokenizer, inputs, gen_config, *args, **kwargs)


class _Reusing:
    """A model that generates from features that are kept; upstream calls `generate` in its one thread."""

    def __init__(self, model, features: FeatureStore):
        self._model, self._features = model, features

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def generate(self, **inputs):
        """As the model's."""
        store, pixel_values = self._features, inputs.get("pixel_values")
        # An exported model encodes images inside of its `generate`.
        if store.max_bytes and pixel_values is not None and hasattr(self._model, "get_image_features"):
            hits = store.hits
            inputs = with_features(self._model, inputs, store)
            logger.info(
                "Images: %d, of which %d were encoded before; so far %d of %d, and %.1f of %.1f MB kept",
                len(pixel_values), store.hits - hits, store.hits, store.hits + store.misses,
                store.num_bytes / 1e6, store.max_bytes / 1e6,
            )  # fmt: skip
        return self._model.generate(**inputs)


def _fit(generation_config: GenerationConfig, inputs: dict, model) -> None:
    length, context = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if length >= context:
        raise InputError(f"the conversation takes {length} tokens, but the model reads at most {context - 1}")
    generation_config.max_new_tokens = min(generation_config.max_new_tokens, context - length)
