"""What the tests of TRL and PEFT share: a tiny model with the default's tokenizer, conversations, losses by hand."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration, FlashSlothProcessor
from transformers_flashsloth.checkpoints.opening import DEFAULT_CHECKPOINT

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


# Trainers with these options take one step of plain gradient descent, of length 1, in float32.
ONE_STEP = {
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "gradient_checkpointing": False,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(autouse=True)
def quick_trainers(monkeypatch):
    """No telemetry; and trainers collect garbage often, which is quick if it need not look at all that is imported."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    gc.freeze()
    yield
    gc.unfreeze()


def small_processor() -> FlashSlothProcessor:
    """Views of 48 pixels, 4 tokens each."""
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    processor.image_processor.size = {"height": 48, "width": 48}
    return processor


def small_model(**changes) -> FlashSlothForConditionalGeneration:
    """A random model, without dropout, whose decoder has a layer before EmbQ and one behind."""
    ids = FlashSlothConfig.from_pretrained(DEFAULT_CHECKPOINT)
    text = SMALL | {"num_hidden_layers": 2, "vocab_size": ids.text_config.vocab_size, "resid_pdrop": 0.0}
    text |= {"bos_token_id": 0, "eos_token_id": ids.text_config.eos_token_id, "pad_token_id": 0}
    config = FlashSlothConfig(
        text_config=text | {"max_position_embeddings": 512, "initializer_range": 0.2},
        vision_config=SMALL | {"num_hidden_layers": 1, "image_size": 48, "patch_size": 8, "vision_use_head": False},
        **{"embq_layer": 1, "embq_hidden_size": 32, "pooling_dropout": 0.0}
        | {
            name: getattr(ids, name)
            for name in ("image_token_id", "query_token_id", "query_init_token_id", "user_prefix_ids")
        }
        | changes,
    )
    torch.manual_seed(0)
    return FlashSlothForConditionalGeneration(config)


def reloadable(model: FlashSlothForConditionalGeneration, directory: Path) -> FlashSlothForConditionalGeneration:
    """The model as loaded from a directory: trainers load their reference models from there."""
    model.save_pretrained(directory / "model")
    return AutoModelForImageTextToText.from_pretrained(directory / "model")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def conversation(question: str, answer: str, num_images: int) -> list[dict]:
    """Messages in TRL's form, whose images are a column of their own."""
    parts = [{"type": "image"}] * num_images + [{"type": "text", "text": question}]
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def ragged_rows() -> list[dict]:
    """Rows with one, no and two images, of different lengths."""
    return [
        {"messages": conversation("Which shape is red?", "circle", 1), "images": [picture(0)]},
        {"messages": conversation("Is seven a number that one can count to?", "yes", 0), "images": []},
        {"messages": conversation("Which one is larger?", "the blue one", 2), "images": [picture(1), picture(2)]},
        {"messages": conversation("How many?", "three", 1), "images": [picture(3)]},
    ]


def as_prompt_completion(row: dict) -> dict:
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:], "images": row["images"]}


def encode(processor: FlashSlothProcessor, row: dict) -> tuple[dict, int]:
    """One row without padding: the inputs, and at which position its answer begins."""
    images = [row["images"]] if row["images"] else None
    whole, prompt = (
        processor(images=images, text=[text], return_tensors="pt")
        for text in (
            processor.apply_chat_template(row["messages"]),
            processor.apply_chat_template(row["messages"][:-1], add_generation_prompt=True),
        )
    )
    return dict(whole), prompt["input_ids"].shape[1]


def masked_loss(model: torch.nn.Module, processor: FlashSlothProcessor, rows: list[dict], answers_only: bool):
    """
    The loss by hand: row by row, unpadded, the log-probability of each token that is learned, over all rows. Never of
    an image or a query; with `answers_only` of nothing before the answer.
    """
    placeholders = torch.tensor([processor.image_token_id, processor.query_token_id])
    log_probs = []
    for row in rows:
        inputs, answer = encode(processor, row)
        ids = inputs["input_ids"][0]
        learned = ~torch.isin(ids, placeholders)
        if answers_only:
            learned &= torch.arange(len(ids)) >= answer
        found = model(**inputs).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        log_probs.append(found[learned[1:]])
    return -torch.cat(log_probs).mean()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def step(trainer) -> tuple[float, dict[str, torch.Tensor]]:
    """Trains as `ONE_STEP` says: the logged loss, and by how much each parameter went down."""
    before = state(trainer.model)
    trainer.train()
    moved = {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), moved


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 2e-5):
    assert found.keys() == expected.keys()
    assert max(values.abs().max() for values in expected.values()) > 1000 * atol
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
