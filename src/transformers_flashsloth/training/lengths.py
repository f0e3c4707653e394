"""Lengths of training rows in tokens, counted without decoding an image, and whether a row fits."""

from typing import NamedTuple

from transformers import ProcessorMixin

from .rows import RowError


class Ruler(NamedTuple):
    """
    Counts the tokens of rows as TRL's collators will make them.

    Attributes:
        processor ([`FlashSlothProcessor`]): tells how many tokens an image and a query run take.
        max_length (`int`): the longest row allowed, image and query tokens included.
        chat_template (`str`, *optional*): by default the processor's.
    """

    processor: ProcessorMixin
    max_length: int
    chat_template: str | None = None

    @property
    def identity(self) -> tuple:
        """What lengths depend on, for a cache to know them by."""
        processor = self.processor
        return (
            processor.tokenizer.backend_tokenizer.to_str(),
            self.chat_template or processor.chat_template,
            self.max_length,
            self._tokens_per_image(),
            processor.num_query_tokens,
        )

    def length(self, row: dict, num_images: int) -> int:
        """
        Args:
            row (`dict`): in a format of TRL's: `messages`, or `prompt` and `completion`.
            num_images (`int`): the images that belong to it.

        Raises:
            RowError: if the chat template refuses the row, an answer is empty, or the row is too long.
        """
        texts = self._texts(row, num_images)
        count = sum(len(ids) for ids in self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"])
        count += num_images * (self._tokens_per_image() - 1)
        count += sum(text.count(self.processor.query_token) for text in texts) * (self.processor.num_query_tokens - 1)
        if count > self.max_length:
            raise RowError("length", f"it takes {count} tokens, more than the {self.max_length} allowed")
        return count

    def _tokens_per_image(self) -> int:
        return self.processor._get_num_multimodal_tokens(image_sizes=[(1, 1)]).num_image_tokens[0]

    def _texts(self, row: dict, num_images: int) -> list[str]:
        if "messages" in row:
            texts = [self._render(row["messages"], num_images)]
        elif isinstance(row["prompt"], str):
            texts = [row["prompt"], row["completion"]]
        else:
            texts = [self._render([*(row["prompt"] or []), *(row["completion"] or [])], num_images)]
        if isinstance(row.get("completion"), str) and not row["completion"].strip():
            raise RowError("empty", "its completion is empty")
        placeholders = sum(text.count(self.processor.image_token) for text in texts)
        if placeholders != num_images:
            raise RowError("placeholder", f"it has {num_images} images but {placeholders} image placeholders")
        return texts

    def _render(self, messages: list[dict], num_images: int) -> str:
        from trl import prepare_multimodal_messages

        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and {*m} >= {"role", "content"} for m in messages
        ):
            raise RowError("fields", "its messages are no list of {'role': ..., 'content': ...}")
        try:
            messages = prepare_multimodal_messages(messages, images=["unread"] * num_images)
            text = self.processor.apply_chat_template(messages, chat_template=self.chat_template, tokenize=False)
        except Exception as error:  # Jinja's, TRL's and those of malformed messages
            raise RowError("template", str(error).rstrip(".")) from error
        answers = [_text(message) for message in messages if message["role"] == "assistant"]
        if not answers:
            raise RowError("empty", "it has no answer")
        if not all(answer.strip() for answer in answers):
            raise RowError("empty", "an answer is empty")
        return text


def grouping_length(length: int, num_images: int) -> int:
    """The length, negative for rows without images: sorted by it, a batch has one modality and rows of one length."""
    return length if num_images else -length


def _text(message: dict) -> str:
    return "".join(part.get("text") or "" for part in message["content"])
