"""
What test_distributed.py runs in two processes: `torchrun distributed_process.py PART CHECKPOINT OUT`.

Rank 0 begins with rows that have images, rank 1 with text alone; every step they swap. Each rank writes what it found
to `OUT/CASE.RANK.pt`, and together they save the trained model of a case in `OUT/CASE`.
"""

import os
import sys
from pathlib import Path

import torch
from PIL import Image
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoProcessor, BatchFeature, PreTrainedModel
from transformers.distributed import DistributedConfig

from transformers_flashsloth import FlashSlothForConditionalGeneration

STEPS = 3
LEARNING_RATE = 0.5
# Question, answer, images.
ROWS = [
    [("What is this?", "a fox", 1), ("Which one is bigger?", "the second", 2)],
    [("Is a fox a bird?", "no", 0), ("How many legs does it have, all in all?", "four", 0)],
]
# A plan of a user's own that shards the image's path, which the default leaves with the root.
APART = {
    f"model.{name}": "free_full_weight"
    for name in ("vision_tower.encoder.layers.*", "multi_modal_projector", "embq", "language_model.layers.*")
}
CASES = {
    "plain": (None, None),
    "checkpointed": ({"use_reentrant": False}, None),
    "re-entrant": ({"use_reentrant": True}, None),
    "all apart": (None, APART),
}
"""Case -> how its activations are checkpointed, how FSDP2 shards its modules."""
ZERO3_CASES = {"plain": None, "re-entrant": {"use_reentrant": True}}
"""Case -> how its activations are checkpointed."""
TRL_CASES = {"sharded": (True, False), "sharded with LoRA": (True, True), "replicated": (False, False)}
"""Case -> whether transformers shards the model, whether an adapter is trained."""
REPLICATED = ("query_tokens.weight", "embq.up_proj.weight", "multi_modal_projector.pooling.hidden_proj.weight")


def messages_of(question: str, answer: str, num_images: int) -> list[dict]:
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": question}]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def picture(index: int) -> torch.Tensor:
    """`(3, 50, 60)`, another one for each index."""
    return (torch.arange(3 * 50 * 60).reshape(3, 50, 60) + 60 * index) % 251


def batches(checkpoint: str) -> list[BatchFeature]:
    """A batch with images and one without, labels on everything but padding."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    found = []
    for rows in ROWS:
        texts = [processor.apply_chat_template(messages_of(*row)) for row in rows]
        images = [picture(index) for index in range(sum(num_images for *_, num_images in rows))]
        inputs = processor(text=texts, images=images or None, padding=True, padding_side="right", return_tensors="pt")
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        found.append(inputs)
    return found


def load(checkpoint: str, **options) -> PreTrainedModel:
    """The model in training mode, without dropout."""
    return FlashSlothForConditionalGeneration.from_pretrained(checkpoint, pooling_dropout=0.0, **options).train()


def train(model: PreTrainedModel, parts: list[list[BatchFeature]]) -> list[list[float]]:
    """One SGD step for each of `parts`, on the mean of its batches' losses; returns these losses."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for part in parts:
        found = [model(**batch).loss for batch in part]
        (sum(found) / len(found)).backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append([loss.item() for loss in found])
    return losses


@torch.no_grad()
def evaluate(model: PreTrainedModel, batch: BatchFeature) -> float:
    return model.eval()(**batch).loss.item()


def fully_sharded(checkpoint: str, out: Path) -> None:
    """Full training of a model that transformers itself shards with FSDP2."""
    rank, pair = int(os.environ["RANK"]), batches(checkpoint)
    for case, (checkpointing, plan) in CASES.items():
        FlashSlothForConditionalGeneration._fsdp_plan = plan
        model = load(checkpoint, distributed_config=DistributedConfig(fsdp_size=2))
        if checkpointing:
            model.gradient_checkpointing_enable(checkpointing)
        report = {
            "wrapped": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
            "local": sum(parameter.to_local().numel() for parameter in model.parameters()),
            "losses": train(model, [[pair[(rank + step) % 2]] for step in range(STEPS)]),
            "evaluated": evaluate(model, pair[rank]),
        }
        torch.save(report, out / f"{case}.{rank}.pt")
        model.save_pretrained(out / case)


def tensor_parallel(checkpoint: str, out: Path) -> None:
    """Logits, tokens and gradients of a model with the decoder split over two ranks."""
    model = load(checkpoint, tp_plan="auto")
    torch.save(tensor_parallel_report(model, checkpoint), out / f"tensor parallel.{os.environ['RANK']}.pt")


def tensor_parallel_report(model: PreTrainedModel, checkpoint: str) -> dict:
    pair = batches(checkpoint)
    outputs = [model(**batch) for batch in pair]
    sum(output.loss for output in outputs).backward()
    parameters = dict(model.model.named_parameters())
    prompt = {name: tensor for name, tensor in pair[0].items() if name != "labels"}
    return {
        "shards": {name: tuple(getattr(p, "to_local", lambda p=p: p)().shape) for name, p in parameters.items()},
        "logits": [output.logits.detach() for output in outputs],
        "gradients": {name: parameters[name].grad for name in REPLICATED},
        "tokens": model.eval().generate(**prompt, max_new_tokens=4, do_sample=False, eos_token_id=None),
    }


def trained_by_trl(checkpoint: str, out: Path) -> None:
    """A few steps of TRL's trainer on one row with an image and one without, in as many processes as there are."""
    for case, (is_sharded, has_adapter) in TRL_CASES.items():
        world = int(os.environ.get("WORLD_SIZE", 1))
        options = {"distributed_config": DistributedConfig(fsdp_size=2)} if is_sharded and world > 1 else {}
        trainer = trl_trainer(load(checkpoint, **options), checkpoint, str(out / case), 2 // world, has_adapter)
        trainer.train()
        trainer.save_model()
        report = {
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "sharded": sum(isinstance(parameter, DTensor) for parameter in trainer.model.parameters()),
            "wrapper": type(trainer.model_wrapped).__name__,
        }
        torch.save(report, out / f"{case}.{os.environ.get('RANK', 0)}.pt")


def trl_trainer(model: PreTrainedModel, checkpoint: str, out: str, batch_size: int, has_adapter: bool):
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "images": [Image.fromarray(picture(index).byte().permute(1, 2, 0).numpy()) for index in range(row[-1])],
            "messages": messages_of(*row),
        }
        for row in (ROWS[0][0], ROWS[1][0])
    ]
    arguments = SFTConfig(
        output_dir=out,
        use_cpu=True,
        bf16=False,
        max_steps=STEPS,
        per_device_train_batch_size=batch_size,
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    adapter = LoraConfig(target_modules=r".*language_model.*\.(q_proj|fc1)") if has_adapter else None
    return SFTTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(checkpoint),
        peft_config=adapter,
    )


def launched_by_accelerate(checkpoint: str, out: Path) -> None:
    """What accelerate makes of its configuration here."""
    from accelerate import Accelerator

    state = Accelerator(cpu=True).state
    report = {"type": state.distributed_type.value, "ranks": state.num_processes}
    torch.save(report, out / f"accelerate.{os.environ['RANK']}.pt")


def zero3(checkpoint: str, out: Path) -> None:
    """Full training with DeepSpeed, on what accelerate makes of its configuration."""
    import deepspeed
    from accelerate import Accelerator

    # An operator that DeepSpeed would compile first; what torch has does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = Accelerator().state.deepspeed_plugin.deepspeed_config
    # Accelerate's own `prepare` takes CPUs for one process, so what it fills in is filled in here.
    config |= {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    config |= {"gradient_clipping": 0.0, "zero_allow_untested_optimizer": True, "steps_per_print": STEPS + 1}
    rank, pair = int(os.environ["RANK"]), batches(checkpoint)
    for case, checkpointing in ZERO3_CASES.items():
        model = load(checkpoint)
        if checkpointing:
            model.gradient_checkpointing_enable(checkpointing)
        optimiser = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=config)
        losses = []
        for step in range(STEPS):
            loss = engine(**pair[(rank + step) % 2]).loss
            engine.backward(loss)
            engine.step()
            losses.append([loss.item()])
        engine.eval()
        with torch.no_grad():
            evaluated = engine(**pair[rank]).loss.item()
        report = {
            "local": sum(parameter.ds_tensor.numel() for parameter in model.parameters()),
            "losses": losses,
            "evaluated": evaluated,
        }
        torch.save(report, out / f"{case}.{rank}.pt")
        engine.save_16bit_model(str(out / case))


def main(part: str, checkpoint: str, out: str) -> None:
    torch.set_num_threads(1)
    parts = {
        "native": [fully_sharded, tensor_parallel],
        "trl": [trained_by_trl],
        "accelerate": [launched_by_accelerate],
        "zero3": [zero3],
    }
    for run in parts[part]:
        run(checkpoint, Path(out))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
