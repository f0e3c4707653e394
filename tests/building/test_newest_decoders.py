"""The newest small decoders, as their checkpoints are published: built, asked in batches, and told what they cannot."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Qwen3_5Config,
    SiglipVisionModel,
    set_seed,
)

from tests.chat_tokenizers import build_chat_tokenizer
from tests.model.decoder_families import CHANGES, SIZES
from tests.tiny_backbones import TEXT, VISION, build, generate, row_of, small
from transformers_flashsloth import answer_all, from_backbones

SIZES = SIZES | {"vocab_size": 320, "max_position_embeddings": 256}
CHATS = {"lfm2": "chatml", "qwen3_5": "chatml", "gemma3_text": "gemma", "smollm3": "chatml"}
QUESTIONS = ["Hm?", "What is in the bottom left corner?", "Is it?"]


def save_decoder(family: str, directory) -> None:
    """Qwen3.5 is published with its vision tower, the others alone."""
    set_seed(0)
    if family == "qwen3_5":
        text = small("qwen3_5_text", SIZES, **CHANGES["qwen3_5_text"], tie_word_embeddings=True)
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 4, "out_hidden_size": 32}
        config = Qwen3_5Config(text_config=text.to_dict(), vision_config=vision, tie_word_embeddings=True)
        AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    else:
        config = small(family, SIZES, **CHANGES.get(family, {}), tie_word_embeddings=True)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    build_chat_tokenizer(CHATS[family]).save_pretrained(directory)


@pytest.fixture(scope="module", params=CHATS)
def built(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    save_decoder(request.param, directory / "decoder")
    SiglipVisionModel(small("siglip_vision_model", VISION)).save_pretrained(directory / "tower")
    model, processor = from_backbones(str(directory / "decoder"), str(directory / "tower"), embq_layer=2)
    for module in model.model.embq_modules:
        torch.nn.init.normal_(module.up_proj.weight)
    return model, processor


def conversation(question: str, seed: int) -> list[dict]:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed))
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def test_rows_of_a_batch_answer_as_alone(built):
    model, processor = built
    chats = [conversation(question, seed) for seed, question in enumerate(QUESTIONS)]
    batch = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    assert not batch["attention_mask"].all()
    together = generate(model, batch)
    for row in range(len(QUESTIONS)):
        assert torch.equal(together[row : row + 1], generate(model, row_of(batch, row)))
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings is True


def test_many_questions_about_one_image_are_answered_as_one_by_one(built):
    """Behind a kept prefix where padding behind it changes nothing, and on kept features elsewhere."""
    model, processor = built
    image = (torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(9)) * 255).to(torch.uint8)
    asked = [(image, question) for question in QUESTIONS]
    options = {"max_new_tokens": 4, "do_sample": False}
    alone = [answer_all(model, processor, [pair], **options)[0] for pair in asked]
    assert answer_all(model, processor, asked, batch_size=3, **options) == alone


def test_tokens_of_every_layer_are_refused():
    """Gemma 3n and 4 E2B look each token up once more for every layer; an image has no such entry."""
    for family in ("gemma3n_text", "gemma4_text"):
        with pytest.raises(ValueError, match=f"'{family}': it looks tokens up again for every layer"):
            build(small(family, TEXT))
