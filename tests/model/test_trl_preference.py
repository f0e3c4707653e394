"""TRL's preference trainers as they are: the first step moves every parameter by the loss done by hand."""

import copy
import math

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from tests.model.tuning import (
    ONE_STEP,
    as_prompt_completion,
    assert_same,
    encode,
    gradients,
    quick_trainers,  # noqa: F401
    ragged_rows,
    reloadable,
    small_model,
    small_processor,
    step,
)

BETA = 0.5


@pytest.fixture(scope="module")
def processor():
    return small_processor()


def answer_log_prob(model, processor, row: dict, answer: str) -> torch.Tensor:
    """Of a row's prompt with this answer, alone and unpadded: the log-probability of the answer and its end."""
    messages = [*row["messages"][:-1], {"role": "assistant", "content": answer}]
    inputs, start = encode(processor, row | {"messages": messages})
    ids = inputs["input_ids"][0]
    log_probs = model(**inputs).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return log_probs[start - 1 :].sum()


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def test_dpo(processor, tmp_path):
    rows, model = ragged_rows(), reloadable(small_model(), tmp_path)
    answers = [("yes", "no, not at all"), ("a red circle", "blue"), ("one", "two"), ("three or four", "five")]
    reference = copy.deepcopy(model).train()
    margins = [
        answer_log_prob(reference, processor, row, chosen) - answer_log_prob(reference, processor, row, rejected)
        for row, (chosen, rejected) in zip(rows, answers, strict=True)
    ]
    # The reference model is the model itself before the step.
    losses = [-logsigmoid(BETA * (margin - margin.detach())) for margin in margins]
    expected = gradients(reference, torch.stack(losses).mean())

    dataset = Dataset.from_list(
        [
            {"prompt": as_prompt_completion(row)["prompt"], "chosen": said(chosen), "rejected": said(rejected)}
            | {"images": row["images"]}
            for row, (chosen, rejected) in zip(rows, answers, strict=True)
        ]
    )
    args = DPOConfig(str(tmp_path), **ONE_STEP, per_device_train_batch_size=4, max_length=None, beta=BETA)
    loss, moved = step(DPOTrainer(model, args=args, processing_class=processor, train_dataset=dataset))

    assert loss == pytest.approx(math.log(2), abs=1e-4)
    assert_same(moved, expected)


def test_kto(processor, tmp_path):
    rows, model = ragged_rows(), reloadable(small_model(), tmp_path)
    likes = [True, False, True, False]
    reference = copy.deepcopy(model).train()
    losses = []
    for row, like in zip(rows, likes, strict=True):
        log_prob = answer_log_prob(reference, processor, row, row["messages"][-1]["content"][0]["text"])
        gain = BETA * (log_prob - log_prob.detach())
        losses.append(1 - torch.sigmoid(gain if like else -gain))
    expected = gradients(reference, torch.stack(losses).mean())

    dataset = [as_prompt_completion(row) | {"label": like} for row, like in zip(rows, likes, strict=True)]
    args = KTOConfig(str(tmp_path), **ONE_STEP, per_device_train_batch_size=4, max_length=None, beta=BETA)
    trainer = KTOTrainer(model, args=args, processing_class=processor, train_dataset=Dataset.from_list(dataset))
    loss, moved = step(trainer)

    assert loss == pytest.approx(0.5, abs=1e-4)
    assert_same(moved, expected)
