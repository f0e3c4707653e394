"""Answers that end before a given text, wherever in a token it begins."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class EndsAnswer(StoppingCriteria):
    """
    Ends a row whose answer has one of some texts in it. The prompt is not looked at.

    Args:
        tokenizer: of the model.
        texts (`Sequence[str]`): none of them empty.
        length (`int`): positions of the prompt, padding included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int):
        self.tokenizer, self.texts, self.length = tokenizer, texts, length
        # A token has at least a byte of text.
        self.tail = max(len(text.encode("utf-8")) for text in texts) + 1

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        """Which rows of `input_ids` `(B, L)` are at their end, `(B,)`."""
        answers = input_ids[:, self.length :][:, -self.tail :]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        done = [any(text in answer for text in self.texts) for answer in texts]
        return torch.tensor(done, device=input_ids.device)


def cut_before(answer: str, texts: Sequence[str]) -> str:
    """An answer up to where the first of some texts begins."""
    ends = [position for text in texts if (position := answer.find(text)) >= 0]
    return answer[: min(ends)] if ends else answer
