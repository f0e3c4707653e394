"""The default's tokenizer: byte-level BPE in which every answer is one token and every text comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .captions import NUMBERS, caption
from .questions import questions_about
from .scenes import KINDS, scene_of
from .vocabulary import COLOURS, EMOJI, PLACES, SHAPES, plural, with_article

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PAD, IMAGE, QUERY, END = "<|endoftext|>", "<image>", "<learnable>", "</s>"
VOCABULARY_SIZE = 1280
ANSWERS = (*EMOJI, *SHAPES, *COLOURS, *PLACES, "yes", "no", "nothing", *map(str, range(10)))


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Learn merges from the template, the answers and generated questions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, IMAGE, QUERY, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(Random(f"tokenizer {seed}")), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=PAD,
        pad_token=PAD,
        unk_token=PAD,
        eos_token=END,
        additional_special_tokens=[IMAGE, QUERY],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )


def _corpus(random: Random) -> Iterator[str]:
    # What every row holds, often enough for whole words to become tokens.
    yield f"\n{SYSTEM_PROMPT} USER: \nUSER: \n ASSISTANT: " * 10_000
    yield "".join(f" {answer} {plural(answer)}" for answer in ANSWERS) * 1000
    yield " ".join(PLACES.values()) * 1000
    names, words = (*EMOJI, *SHAPES, *COLOURS), ("and", "some", *NUMBERS)
    yield "".join(f" {word} {with_article(name)}" for name in names for word in words) * 100
    for _ in range(800):
        for kind in KINDS:
            scene = scene_of(kind, random)
            yield caption(scene, random)
            for turn in questions_about(scene, random):
                yield f"\n{turn.question}"
                yield f" {turn.question}"
