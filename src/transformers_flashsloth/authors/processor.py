"""The processor of the authors' checkpoints, which have no processor files: rebuilt from their tokenizer's files."""

import json
import os
from pathlib import Path

from tokenizers import AddedToken
from transformers import CodeGenTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..model.configuration_flashsloth import FlashSlothConfig
from ..model.foreign_formats import hub_options
from ..model.image_processing_flashsloth import FlashSlothImageProcessor
from .format import END_OF_TEXT_ID

IMAGE_TOKEN = "<image>"
END_OF_TEXT = "<|endoftext|>"
END_OF_ANSWER = "</s>"
SPECIAL_TOKENS = ("<learnable>", END_OF_ANSWER, IMAGE_TOKEN)


def authors_processor_parts(path: str | os.PathLike, entries: dict, image_hd: bool | None = None, **options) -> dict:
    """
    Makes the parts of the processor that fits a checkpoint in the authors' format.

    Args:
        path (`str` or `os.PathLike`): directory or Hub id.
        entries (`dict`): of its config.json.
        image_hd (`bool`, *optional*): whether images are read in high definition; by default as config.json says.
        options: those of `from_pretrained`.

    Returns:
        the arguments of [`FlashSlothProcessor`].

    Raises:
        OSError or ValueError: as [`load_authors_tokenizer`].
    """
    config = FlashSlothConfig.from_pretrained(path, **hub_options(options))
    vision = config.vision_config
    return {
        "image_processor": FlashSlothImageProcessor(
            size={"height": vision.image_size, "width": vision.image_size},
            image_hd=bool(entries.get("image_hd", False) if image_hd is None else image_hd),
        ),
        "tokenizer": load_authors_tokenizer(
            path, config.image_token_id, config.text_config.max_position_embeddings, **options
        ),
        "num_query_tokens": config.num_query_tokens,
        "patch_size": vision.patch_size,
        "pooling_window": config.pooling_window,
    }


def load_authors_tokenizer(
    path: str | os.PathLike, image_token_id: int, max_length: int, **options
) -> CodeGenTokenizer:
    """
    Builds the fast tokenizer of a checkpoint in the authors' format, with `<image>` added.

    Args:
        path (`str` or `os.PathLike`): directory or Hub id with vocab.json, merges.txt and added_tokens.json.
        image_token_id (`int`): id that `<image>` has to get: the one that the model's config names.
        max_length (`int`): longest input of the model, in tokens.
        options: those of `from_pretrained` that say where to find the files.

    Raises:
        OSError: if a file is missing.
        ValueError: if a file is damaged, or the ids leave gaps or no room for `<image>`.
    """
    vocab = _read_json(path, "vocab.json", options)
    added = _read_json(path, "added_tokens.json", options)
    merges = [tuple(line.split(" ")) for line in _read(path, "merges.txt", options).split("\n")]
    merges = [merge for merge in merges if len(merge) == 2 and merge[0] != "#version:"]
    if vocab.get(END_OF_TEXT) != END_OF_TEXT_ID or not {"<learnable>", END_OF_ANSWER} <= added.keys():
        raise ValueError(
            f"The tokenizer of {path} is not FlashSloth's: it needs {END_OF_TEXT} ({END_OF_TEXT_ID}) in vocab.json, "
            f"<learnable> and {END_OF_ANSWER} in added_tokens.json."
        )

    tokenizer = CodeGenTokenizer(vocab=vocab, merges=merges, pad_token=END_OF_TEXT, model_max_length=max_length)
    wanted = {IMAGE_TOKEN: image_token_id} | added
    for token, token_id in sorted(wanted.items(), key=lambda item: item[1]):
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in SPECIAL_TOKENS)])
        if tokenizer.convert_tokens_to_ids(token) != token_id:
            raise ValueError(
                f"{token!r} should have the id {token_id}, but gets {tokenizer.convert_tokens_to_ids(token)}: the ids "
                f"in vocab.json and added_tokens.json of {path} must run on without a gap, and {image_token_id} must "
                f"be free for {IMAGE_TOKEN}."
            )
    tokenizer.eos_token = END_OF_ANSWER
    return tokenizer


def save_authors_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: str | os.PathLike) -> None:
    """Writes the files of a tokenizer as the authors' checkpoints hold them, without `<image>`, which is not theirs."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = {
        token: token_id
        for token, token_id in tokenizer.get_added_vocab().items()
        if token not in model["vocab"] and token != IMAGE_TOKEN
    }
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_ANSWER, "pad_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    files = {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]),
        "added_tokens.json": json.dumps(added, ensure_ascii=False, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(
            special
            | {
                "add_prefix_space": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": tokenizer.model_max_length,
                "padding_side": "right",
                "tokenizer_class": "CodeGenTokenizer",
            },
            indent=2,
        ),
    }
    for name, content in files.items():
        Path(directory, name).write_text(content + "\n", encoding="utf-8", newline="\n")


def _read(path: str | os.PathLike, name: str, options: dict) -> str:
    with open(cached_file(path, name, **hub_options(options)), encoding="utf-8", newline="\n") as file:
        return file.read()


def _read_json(path: str | os.PathLike, name: str, options: dict) -> dict[str, int]:
    try:
        entries = json.loads(_read(path, name, options))
    except ValueError as error:
        raise ValueError(f"{name} of {path} is damaged: {error}.") from error
    return entries
