"""TRL's online trainers as they are, on a model that wants to answer with placeholders: the policy gradient by hand."""

import copy

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.model.tuning import (
    ONE_STEP,
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

GROUP = 2


@pytest.fixture(scope="module")
def processor():
    return small_processor()


class Reward:
    """Rewards whatever was sampled, differently each time, and remembers it."""

    __name__ = "reward"

    def __init__(self):
        self.sampled = []

    def __call__(self, prompts, completions, completion_ids, question, **kwargs):
        rewards = [float(i * i) for i in range(len(completion_ids))]
        self.sampled = list(zip(question, completion_ids, rewards, strict=True))
        return rewards


def sampled_log_probs(model, processor, row: dict, sampled: list[int]) -> torch.Tensor:
    """Of each sampled token behind the row's prompt, alone and unpadded."""
    inputs, start = encode(processor, row)
    ids = torch.tensor([[*inputs["input_ids"][0, :start].tolist(), *sampled]])
    images = {name: inputs[name] for name in ("pixel_values",) if name in inputs}
    logits = model(input_ids=ids, **images).logits[0, start - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]


@pytest.mark.parametrize(
    ("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)], ids=["grpo", "rloo"]
)
@pytest.mark.parametrize("kind", ["an image a row", "several images", "text only", "ragged"])
def test_step_is_the_policy_gradient_of_what_was_sampled(processor, tmp_path, trainer_class, config_class, kind):
    rows = ragged_rows()
    chosen = {"an image a row": [0, 3], "several images": [2], "text only": [1], "ragged": [0, 1, 2]}[kind]
    rows = [rows[i] for i in chosen]
    placeholders = [processor.image_token_id, processor.query_token_id]
    model = small_model()
    with torch.no_grad():
        model.lm_head.bias[placeholders] = 30.0
    model = reloadable(model, tmp_path)
    reference, reward = copy.deepcopy(model).train(), Reward()
    data = [
        {"prompt": row["messages"][:-1], "question": i} | ({} if kind == "text only" else {"images": row["images"]})
        for i, row in enumerate(rows)
    ]
    size = GROUP * len(rows)
    options = ONE_STEP | {"per_device_train_batch_size": size, "num_generations": GROUP, "max_completion_length": 5}
    options |= {"loss_type": "grpo"} if config_class is GRPOConfig else {}
    args = config_class(str(tmp_path), **options, temperature=1.0)
    trainer = trainer_class(model, reward, args=args, processing_class=processor, train_dataset=Dataset.from_list(data))

    _, moved = step(trainer)

    assert len(reward.sampled) == size
    gains = []
    for question, ids, own in reward.sampled:
        assert ids and not set(ids) & set(placeholders)
        group = torch.tensor([r for q, _, r in reward.sampled if q == question])
        log_probs = sampled_log_probs(reference, processor, rows[question], ids)
        if config_class is GRPOConfig:
            gains.append((own - group.mean()) / (group.std() + 1e-4) * log_probs.mean())
        else:
            gains.append((own - (group.sum() - own) / (GROUP - 1)) * log_probs.sum())
    assert_same(moved, gradients(reference, -torch.stack(gains).mean()))
