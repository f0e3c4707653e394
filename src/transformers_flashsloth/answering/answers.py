"""Answers to many questions about some images, each image encoded once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from ..model.processing_flashsloth import FlashSlothProcessor
from .features import FeatureStore
from .plan import batches_of
from .prompts import Prompt, PromptMaker, as_conversation
from .rows import Rows

DEFAULT_STORE_BYTES = 2**30


def answer_all(
    model: PreTrainedModel,
    processor: FlashSlothProcessor,
    questions: Sequence[tuple | list[dict]],
    *,
    batch_size: int = 8,
    features: FeatureStore | None = None,
    processor_kwargs: dict | None = None,
    until: Sequence[str] = (),
    progress: Callable[[int, str], Any] | None = None,
    **generate_kwargs,
) -> list[str]:
    """
    Answers questions about images, computing once what several of them have in common: the features of an image, and,
    where enough questions are about the same images, the keys and values of the prompt up to the question. Answers
    equal those of `generate` one by one (sampled ones are drawn in another order).

    Args:
        model ([`FlashSlothForConditionalGeneration`]): or PEFT's wrapper of one.
        processor ([`FlashSlothProcessor`]): of the model.
        questions: each a pair `(images, question)` or a conversation, a list of messages as the chat template takes
            them, which ends with a user's. The images of a pair are `None`, whatever the processor takes as one image,
            a list of these, or parts such as `{"type": "video", "video": "clip.mp4"}`. In any order; rows with any
            number of images, or none.
        batch_size (`int`, defaults to 8): most rows that are answered together.
        features ([`FeatureStore`], *optional*): keeps features beyond this call; by default there is one of 1 GiB.
        processor_kwargs (`dict`, *optional*): options of the processor for all questions, such as `image_hd=True` and
            `pooling_window=6`.
        until (`Sequence[str]`): an answer ends before the first of these texts, which the prompt may hold.
        progress (`Callable`, *optional*): called with the index of a question and its answer, once that is known.
        generate_kwargs: options of `generate`. `max_new_tokens` (by default as the model says, or 256) is cut where
            the decoder's context ends; `stop_strings` need no tokenizer.

    Returns:
        `list[str]`: the answers in the order of the questions, without special tokens and surrounding blanks.

    Raises:
        ValueError: naming the question, if one cannot be asked; texts are looked at before anything is computed.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if (generate_kwargs.get("num_return_sequences") or 1) != 1:
        raise ValueError("`num_return_sequences` must be 1: a question has one answer here.")
    maker = PromptMaker(processor, processor_kwargs or {})
    conversations, texts = [], []
    for index, question in enumerate(questions):
        with _naming(index, len(questions)):
            conversations.append(as_conversation(question))
            texts.append(maker.text(conversations[-1]))
    until = [text for text in ((until,) if isinstance(until, str) else until) if text]
    store = FeatureStore(DEFAULT_STORE_BYTES) if features is None else features
    rows = Rows(model, processor, store, generate_kwargs, until)
    prompts: dict[int, Prompt] = {}

    def prompt_of(index: int) -> Prompt:
        if index not in prompts:
            with _naming(index, len(questions)):
                prompts[index] = rows.checked(maker.prompt(index, conversations[index]))
        return prompts[index]

    answers = [""] * len(conversations)
    for batch in batches_of(conversations, texts, model, generate_kwargs, batch_size):
        together = [prompt_of(index) for index in batch.indices]
        following = None if batch.following is None else prompt_of(batch.following)
        for prompt, answer in rows.answers(together, batch.shares_prefix, following):
            answers[prompt.index] = answer
            del prompts[prompt.index]
            if progress is not None:
                progress(prompt.index, answer)
    return answers


@contextmanager
def _naming(index: int, count: int) -> Iterator[None]:
    """Says which question it is that cannot be asked."""
    try:
        yield
    except Exception as error:  # templates, image processors and tokenizers each have their own kinds
        raise ValueError(f"Question {index + 1} of {count} cannot be asked: {error}") from error
