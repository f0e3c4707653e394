"""Train the default model: the vision tower on patch labels, then everything end to end on questions.

    python -m conversion.default_model.train --minutes 150 --output DIR

Run the same command again after an interruption and it goes on from the last checkpoint. DIR receives the model as
`from_pretrained` reads it, in bfloat16, with tokenizer, processor and chat template. A CPU or a GPU will do.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import transformers_flashsloth
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothImageProcessor, FlashSlothProcessor

from .architecture import attention_for, initialise, model_config
from .assets import load_easy_vqa
from .dense import DenseHeads
from .grounding import grounding_loss, recorded_scores
from .optimisation import CHECKPOINT_SECONDS, Clock, Optimisers, made_ahead, save_checkpoint
from .pretrain_vision import pretrain_vision
from .rows import IGNORED, Batch, RowEncoder
from .scenes import IMAGE_SIZE, PATCH_SIZE, Scene, scene_of
from .tokenizer import IMAGE, QUERY, train_tokenizer

DEFAULT_CHECKPOINT = Path(transformers_flashsloth.__file__).with_name("default_checkpoint")
"""Where the trained default lies in the package."""
OFFICIAL = "official easy-vqa"
MIXTURE = {
    "single": 0.12,
    "several": 0.12,
    "corners": 0.14,
    "counting": 0.24,
    "shapes": 0.13,
    "shape corners": 0.07,
    "easy-vqa": 0.07,
    OFFICIAL: 0.11,
}
"""Share of each kind of picture; the last is easy-VQA's training split."""
TURNS = (1, 2, 4, 5, 6)
"""Questions a row, drawn for each batch, so that little padding is needed."""
BATCH_SIZE = 64
MATRIX_LR, OTHER_LR = 4e-3, 1.5e-3
WEIGHTS = {"answers": 1.0, "patches": 0.4, "grounding": 0.3}
VISION_SHARE = 0.15
"""Part of the time that the vision tower trains alone."""


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `directory`, alone or with a model."""
    return PreTrainedTokenizerFast.from_pretrained(directory)


class Pictures:
    """Random pictures of the training mixture, drawn scenes and easy-VQA's training images."""

    def __init__(self):
        images = load_easy_vqa("train", IMAGE_SIZE)
        self.official = [Scene(OFFICIAL, image.pixels, [], owner=None, questions=image.questions) for image in images]

    def draw(self, count: int, random: Random) -> list[Scene]:
        """`count` scenes."""
        kinds = random.choices(tuple(MIXTURE), tuple(MIXTURE.values()), k=count)
        return [random.choice(self.official) if kind == OFFICIAL else scene_of(kind, random) for kind in kinds]


def build_model(tokenizer: PreTrainedTokenizerBase, device: torch.device) -> FlashSlothForConditionalGeneration:
    """The untrained default."""
    model = FlashSlothForConditionalGeneration._from_config(
        model_config(tokenizer), attn_implementation=attention_for(device)
    )
    initialise(model)
    return model.to(device).train()


def train_end_to_end(
    path: Path, vision: dict, tokenizer: PreTrainedTokenizerBase, minutes: float, seed: int, device: torch.device
) -> FlashSlothForConditionalGeneration:
    """Phase B: answers to questions, with patch labels and grounding at small weights. Checkpoints at `path`.

    `vision` is what `pretrain_vision` returned.
    """
    torch.manual_seed(seed)
    model = build_model(tokenizer, device)
    model.model.vision_tower.load_state_dict(vision["tower"])
    heads = DenseHeads(model.config.vision_config.hidden_size).to(device)
    heads.load_state_dict(vision["heads"])
    optimisers = Optimisers([model, heads], MATRIX_LR, OTHER_LR)
    step, elapsed = 0, 0.0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimisers.load_state_dict(state["optimisers"])
        step, elapsed = state["step"], state["elapsed"]

    pictures = Pictures()
    encoder = RowEncoder(tokenizer, model.config.tokens_per_view, model.config.num_query_tokens)

    def make_batch(index: int) -> Batch:
        random = Random(f"questions {seed} {index}")
        return encoder.batch(pictures.draw(BATCH_SIZE, random), random.choice(TURNS), random)

    def save() -> None:
        save_checkpoint(
            path,
            model=model.state_dict(),
            heads=heads.state_dict(),
            optimisers=optimisers.state_dict(),
            step=step,
            elapsed=clock.elapsed,
        )

    clock = Clock(minutes, elapsed)
    next_save = clock.elapsed + CHECKPOINT_SECONDS
    with tqdm(desc="end to end", unit="image", initial=step * BATCH_SIZE) as bar:
        batches = made_ahead(make_batch, step)
        while not clock.finished:
            batch = next(batches).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                losses = losses_of(model, heads, batch)
            optimisers.step(sum(WEIGHTS[name] * loss for name, loss in losses.items()), clock.factor)
            step += 1
            bar.update(BATCH_SIZE)
            if step % 10 == 0:
                bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()}, refresh=False)
            if clock.elapsed >= next_save:
                save()
                next_save = clock.elapsed + CHECKPOINT_SECONDS
        batches.close()
    save()
    return model


def losses_of(model: FlashSlothForConditionalGeneration, heads: DenseHeads, batch: Batch) -> dict[str, torch.Tensor]:
    """The language loss on the answers, the dense loss on the patches and the grounding loss of EmbQ, scalars."""
    images = model.get_image_features(batch.pixel_values)
    with recorded_scores(model.model.embq.image_attention) as scores:
        hidden_states = model.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, mm_encoder_outputs={"image": images}
        ).last_hidden_state  # (B, L, D)
    next_ids = batch.labels[:, 1:]
    answered = next_ids != IGNORED
    # The language head runs where an answer is due only, one position in twenty.
    logits = model.lm_head(hidden_states[:, :-1][answered]).float()
    return {
        "answers": cross_entropy(logits, next_ids[answered]),
        "patches": heads(images.last_hidden_state, batch.patches),
        "grounding": grounding_loss(scores[0], batch.grounding),
    }


def export(model: FlashSlothForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write weights in bfloat16, configs, tokenizer, processor and chat template."""
    model = model.to("cpu", torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=16,
    )
    model.save_pretrained(output)
    processor(tokenizer).save_pretrained(output)


def processor(tokenizer: PreTrainedTokenizerBase) -> FlashSlothProcessor:
    """The default's processor: one view of 96 pixels."""
    config = model_config(tokenizer)
    return FlashSlothProcessor(
        image_processor=FlashSlothImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        image_token=IMAGE,
        query_token=QUERY,
        num_query_tokens=config.num_query_tokens,
        patch_size=PATCH_SIZE,
        pooling_window=config.pooling_window,
    )


def train(output: Path, minutes: float, seed: int, device: torch.device) -> None:
    """Both phases and the export; checkpoints are kept in `output`/training."""
    kept = output / "training"
    vision = pretrain_vision(kept / "vision.pt", minutes * VISION_SHARE, seed, device)
    if not (kept / "tokenizer").exists():
        train_tokenizer(seed).save_pretrained(kept / "tokenizer")
    tokenizer = load_tokenizer(kept / "tokenizer")
    model = train_end_to_end(kept / "end_to_end.pt", vision, tokenizer, minutes * (1 - VISION_SHARE), seed, device)
    export(model, tokenizer, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory of the model and of the checkpoints")
    parser.add_argument("--minutes", type=float, default=150, help="training time in all, over interruptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    train(arguments.output, arguments.minutes, arguments.seed, torch.device(arguments.device))
    print(f"The trained model is in {arguments.output}.")


if __name__ == "__main__":
    main()
