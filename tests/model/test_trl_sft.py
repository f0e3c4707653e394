"""TRL's SFTTrainer as it is: one step of plain gradient descent moves every parameter by the loss done by hand."""

import copy

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.model.tuning import (
    ONE_STEP,
    as_prompt_completion,
    assert_same,
    encode,
    gradients,
    masked_loss,
    quick_trainers,  # noqa: F401
    ragged_rows,
    small_model,
    small_processor,
    step,
)

CHECKPOINTED = [
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": re_entrant}}
    for re_entrant in (True, False)
]


@pytest.fixture(scope="module")
def processor():
    return small_processor()


def sft(model, processor, rows, directory, peft_config=None, **options) -> SFTTrainer:
    options = ONE_STEP | {"per_device_train_batch_size": len(rows), "max_length": None} | options
    return SFTTrainer(
        model,
        args=SFTConfig(output_dir=str(directory), **options),
        processing_class=processor,
        train_dataset=Dataset.from_list(rows),
        peft_config=peft_config,
    )


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("messages", {}),
        ("messages", {"assistant_only_loss": True}),
        ("prompt-completion", {}),
        ("messages", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        ("messages", CHECKPOINTED[0]),
        ("messages", CHECKPOINTED[1]),
    ],
    ids=["messages", "assistant-only", "prompt-completion", "accumulated", "re-entrant", "not re-entrant"],
)
def test_step_is_that_of_the_masked_loss(processor, tmp_path, form, options):
    """Rows with one, no and two images in one batch, against the rows one by one."""
    model, rows = small_model(), ragged_rows()
    answers_only = form == "prompt-completion" or "assistant_only_loss" in options
    reference = copy.deepcopy(model).train()
    loss = masked_loss(reference, processor, rows, answers_only)
    expected = gradients(reference, loss)

    rows = [as_prompt_completion(row) for row in rows] if form == "prompt-completion" else rows
    logged, moved = step(sft(model, processor, rows, tmp_path, **options))

    assert logged == pytest.approx(loss.item(), abs=2e-4)
    assert_same(moved, expected)
    learned = {name for name, change in moved.items() if change.abs().max() > 0}
    # The bias of a key or a score shifts all that a softmax compares alike.
    assert {name for name in moved.keys() - learned if not name.endswith(("k_proj.bias", "score_proj.bias"))} == set()


def test_step_in_bfloat16_follows_that_in_float32(processor, tmp_path):
    model, rows = small_model(), ragged_rows()
    reference = copy.deepcopy(model).train()
    loss = masked_loss(reference, processor, rows, answers_only=True)
    expected = gradients(reference, loss)

    logged, moved = step(sft(model, processor, rows, tmp_path, bf16=True, assistant_only_loss=True))

    assert logged == pytest.approx(loss.item(), rel=2e-2)
    found, wanted = (torch.cat([g.flatten() for g in grads.values()]) for grads in (moved, expected))
    assert torch.cosine_similarity(found, wanted, dim=0) > 0.99


def test_lora_learns_and_the_rest_stays(processor, tmp_path):
    trainer = sft(small_model(), processor, ragged_rows(), tmp_path, LoraConfig(init_lora_weights=False))

    _, moved = step(trainer)

    learned = {name for name, change in moved.items() if change.abs().max() > 0}
    assert learned == {name for name in moved if "lora_" in name}
    assert all(".language_model.layers." in name for name in learned)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_labels_of_any_collator_are_masked_beside_our_forward(processor, with_adapter):
    """TRL's fused head takes the loss itself, and a collator of one's own may label everything."""
    row = ragged_rows()[2]
    inputs, _ = encode(processor, row)
    model = small_model().train()
    if with_adapter:
        model = get_peft_model(model, LoraConfig(init_lora_weights=False))
    reference = masked_loss(model, processor, [row], answers_only=False)
    expected = gradients(model, reference)

    add_fused_lm_head(model.get_base_model() if with_adapter else model)
    output = model(**inputs, labels=inputs["input_ids"].clone(), fused_lm_head=True)

    torch.testing.assert_close(output.loss, reference)
    assert_same(gradients(model, output.loss), expected)


def test_labels_put_into_a_batch_are_masked(processor):
    batch = processor(images=ragged_rows()[0]["images"], text="<image>\nWhat?<learnable> ASSISTANT: A circle</s>")
    text_only = processor(text=["What?", "Why so?"], padding=True, return_tensors="pt")
    assert not hasattr(text_only, "labels")

    row = processor(images=ragged_rows()[0]["images"], text="<image>\nWhat?<learnable> Yes</s>", return_tensors="pt")
    row["labels"] = row["input_ids"].clone()
    placeholders = (row["input_ids"] == processor.image_token_id) | (row["input_ids"] == processor.query_token_id)
    assert placeholders.sum() == 4 + 9
    assert torch.equal(row["labels"] == -100, placeholders)
    assert torch.equal(row["labels"][~placeholders], row["input_ids"][~placeholders])

    batch["labels"] = batch["input_ids"]
    assert batch["labels"] == batch["input_ids"], "only tensors are masked"


def test_a_row_that_would_be_cut_is_refused_with_its_reason(processor, tmp_path):
    trainer = sft(small_model(), processor, ragged_rows(), tmp_path, max_length=16)
    with pytest.raises(ValueError, match=r"Truncation cut .*`max_length`"):
        trainer.train()


@pytest.mark.parametrize("peft_config", [None, LoraConfig()])
def test_noisy_embeddings(processor, tmp_path, peft_config):
    """NEFTune, with a token whose embedding is added to every query, as in the released model."""
    model = small_model(query_init_token_id=9)
    rows = ragged_rows()
    trainer = sft(model, processor, rows, tmp_path, peft_config, neftune_noise_alpha=5, max_steps=2)
    hooks = len(model.get_input_embeddings()._forward_hooks)
    losses = []
    trainer.model.register_forward_hook(lambda module, args, output: losses.append(output["loss"].item()))
    trainer.train()
    assert losses and all(loss == loss and loss < 100 for loss in losses)
    assert len(model.get_input_embeddings()._forward_hooks) == hooks  # the noise is gone


def test_queries_get_noise_of_their_length(processor):
    """As much as any other position: hooks count positions, so a single one would get far more."""
    model = small_model(query_init_token_id=9).train()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    inputs = encode(processor, ragged_rows()[0])[0]
    model(**inputs)
    length = inputs["input_ids"].shape[1]
    assert [shape[1] for shape in seen] == [length, length]
