"""The stages of training behind the frozen vision tower: alignment, looking, instruction, counting."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration

from .features import FeatureBank, fingerprint
from .grounding import attention_shares, grounding_loss, overlap_loss, recorded_scores
from .optimisation import CHECKPOINT_SECONDS, Budget, Optimisers, fast_products, made_ahead, save_checkpoint
from .parts import ImagesOf, Window, images_of, without_embq
from .reading import NumberReaders, number_read
from .rows import IGNORED, Batch, RowEncoder

TURNS = (1, 2, 4, 5, 6)
"""Questions a row, drawn for each batch, so that little padding is needed."""
MATRIX_LR, OTHER_LR = 4e-3, 1.5e-3


@dataclass(frozen=True)
class Stage:
    """What a stage trains on, and how."""

    name: str
    rows: int
    """Rows a batch."""
    captions: float
    """Share of the batches that are captions; the others are questions."""
    blindfolded: float = 0.0
    """Share of the batches of questions in which EmbQ is off, so that visual tokens must do."""
    misled: float = 0.0
    """Share of the batches of questions, but for counts, in which EmbQ reads another picture, so that visual tokens are
    believed."""
    losses: dict[str, float] = field(default_factory=lambda: {"answers": 1.0})
    """Weights of the losses "answers", "grounding", "overlap", "ninths" and "number"."""
    worth: dict[str, float] = field(default_factory=dict)
    """What an answer of a family counts, where not 1."""
    learns: str = ""
    """Part of the names of what learns; with nothing given, all but the vision tower does."""
    looking_rate: float = 1.0
    """Share of the learning rates that those parts of EmbQ get that say where it looks."""
    windows: dict[int, float] = field(default_factory=lambda: {3: 1.0})
    """Patches along a pooling window -> share of the batches."""
    rate: float = 1.0
    """Share of the learning rates."""
    counts_first: float = 0.0
    """Share of the conversations in which a number is asked for, if one can be."""
    capitals: float = 0.0
    """Share of the questions that are put into capitals."""


def chosen(stage: Stage) -> dict[str, object]:
    """The fields of a stage that are not what they are where nothing is said."""
    plain = Stage(stage.name, stage.rows, stage.captions)
    named = {"name": stage.name, "rows": stage.rows, "captions": stage.captions}
    return named | {name: value for name, value in vars(stage).items() if value != getattr(plain, name)}


ALIGNMENT = Stage(
    "alignment",
    rows=32,
    captions=0.35,
    blindfolded=1.0,
    windows={3: 0.7, 2: 0.06, 4: 0.08, 6: 0.08, 12: 0.08},
)
"""Nothing but visual tokens tells of the picture: EmbQ learns so soon that beside it they would be left idle."""
LOOKING = Stage(
    "looking",
    rows=32,
    captions=0.0,
    losses={"grounding": 1.0, "overlap": 0.3},
    learns="embq",
)
"""EmbQ alone learns where to look, and from nothing else."""
INSTRUCTION = Stage(
    "instruction",
    rows=32,
    captions=0.15,
    blindfolded=0.1,
    misled=0.1,
    losses={"answers": 1.0, "grounding": 1.0, "overlap": 0.5},
    worth={"count": 2.0},
    looking_rate=0.25,
    windows={3: 0.64, 2: 0.08, 4: 0.1, 6: 0.12, 12: 0.06},
)
"""EmbQ knows by now where to look; at the full rate its attention would harden on single tokens and stay there.
Counting is learnt last of all."""
COUNTING = replace(
    INSTRUCTION,
    name="counting",
    losses=INSTRUCTION.losses | {"grounding": 2.0, "ninths": 3.0, "number": 0.3},
    worth={"count": 3.0},
    looking_rate=0.5,
    rate=0.4,
    counts_first=0.5,
    capitals=0.1,
)
"""More instruction, in which numbers are asked for more often and count more; what is found of them shall be plain."""
STAGES = (ALIGNMENT, LOOKING, INSTRUCTION, COUNTING)


class Draw:
    """The batches of a stage by number: batch 17 of a seed is always the same."""

    def __init__(self, stage: Stage, bank: FeatureBank, encoder: RowEncoder, config: FlashSlothConfig, seed: int):
        self.stage, self.bank, self.encoder, self.seed = stage, bank, encoder, seed
        self.side, self.window = config.patch_grid[0], config.window[0]

    def __call__(self, index: int) -> tuple[Batch, Window, str]:
        """The batch, its pooling window, and what EmbQ reads: "its own" picture, "another", or "none", being off.

        With captions it is off. Nothing is asked there, so that its gradient would be noise; Muon makes steps of one
        size of any gradient, and these would leave its attention on one token or another for good.
        """
        stage, random = self.stage, Random(f"{self.stage.name} {self.seed} {index}")
        window = random.choices(tuple(stage.windows), tuple(stage.windows.values()))[0]
        numbers = [random.randrange(self.bank.count) for _ in range(stage.rows)]
        scenes, patches = [self.bank.pictures[number] for number in numbers], self.bank[numbers]
        known = any(scene.owner is not None for scene in scenes)
        if random.random() < stage.captions and known:
            batch = self.encoder.captions(scenes, patches, self.tokens(window), random)
            return batch, (window, window), "none"
        kinds = {"none": stage.blindfolded, "another": stage.misled}
        reads = random.choices((*kinds, "its own"), (*kinds.values(), 1 - sum(kinds.values())))[0]
        left_out = ()
        if reads == "another":  # few tokens know too little to be believed, and of numbers all do
            window, left_out = self.window, ("count",)
        turns, tokens = random.choice(TURNS), self.tokens(window)
        batch = self.encoder.questions(
            scenes, patches, turns, tokens, random, left_out, stage.worth, stage.counts_first, stage.capitals
        )
        return batch, (window, window), reads

    def tokens(self, window: int) -> int:
        """Visual tokens of a picture pooled in windows of so many patches along."""
        return (self.side // window) ** 2


def run_stage(
    stage: Stage,
    model: FlashSlothForConditionalGeneration,
    bank: FeatureBank,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    budget: Budget,
    seed: int,
    images_of: ImagesOf = images_of,
) -> None:
    """Train what `stage` says, behind the tower, until `budget` is spent; kept at `path`, and going on from there."""
    device = model.device
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name and stage.learns in name)
    readers = NumberReaders(model.config.text_config.hidden_size).to(device) if "number" in stage.losses else None
    optimisers = Optimisers(
        [model, *([readers] if readers else [])],
        MATRIX_LR,
        OTHER_LR,
        rate_of=lambda name: stage.rate * (stage.looking_rate if says_where(name) else 1.0),
    )
    tower = fingerprint(model.model.vision_tower.state_dict())
    step = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        if state["tower"] != tower:
            raise ValueError(
                f"{path} was trained behind another vision tower than this run has; remove it "
                "to train this stage anew, or restore that tower's vision.pt."
            )
        load_trained(model, state["model"])
        if readers:
            readers.load_state_dict(state["readers"])
        optimisers.load_state_dict(state["optimisers"])
        step = state["step"]
        budget.go_on_from(step, state["elapsed"])
    else:
        budget.go_on_from(0, 0.0)
    encoder = RowEncoder(tokenizer, model.config.num_query_tokens)
    draw = Draw(stage, bank, encoder, model.config, seed)

    def save() -> None:
        trained = {name: value for name, value in model.state_dict().items() if "vision_tower" not in name}
        states = optimisers.state_dict()
        beside = {"readers": readers.state_dict()} if readers else {}
        save_checkpoint(
            path, model=trained, optimisers=states, step=step, elapsed=budget.elapsed, tower=tower, **beside
        )

    next_save = budget.elapsed + CHECKPOINT_SECONDS
    with tqdm(desc=stage.name, unit="batch", initial=step, total=budget.steps) as bar:
        batches = made_ahead(draw, step)
        while not budget.spent(step):
            batch, window, reads = next(batches)
            batch = batch.to(device)
            with (
                fast_products(device),
                without_embq(model) if reads == "none" else nullcontext(),
            ):
                images = images_of(model, batch.patches.to(model.dtype), window)
                if reads == "another":
                    batch = batch._replace(grounding=None)
                    images.last_hidden_state = images.last_hidden_state.roll(1, 0)
                losses = stage_losses(model, batch, images, readers)
            weighted = [stage.losses[name] * loss for name, loss in losses.items() if name in stage.losses]
            optimisers.step(sum(weighted), budget.factor(step))
            step += 1
            bar.update(1)
            if step % 10 == 0:
                bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()}, refresh=False)
            if budget.elapsed >= next_save:
                save()
                next_save = budget.elapsed + CHECKPOINT_SECONDS
        batches.close()
    save()


def says_where(name: str) -> bool:
    """Whether a parameter has a say in where EmbQ looks: all of it but what it makes of what it finds."""
    return "embq" in name and "image_attention.v_proj" not in name and "up_proj" not in name


def load_trained(model: FlashSlothForConditionalGeneration, state: dict[str, torch.Tensor]) -> None:
    """Load what a stage trained, which is all but the vision tower."""
    missing = model.load_state_dict(state, strict=False)
    unknown = [*missing.unexpected_keys, *[name for name in missing.missing_keys if "vision_tower" not in name]]
    if unknown:
        raise ValueError(f"The checkpoint is not of this model; it differs in {', '.join(unknown)}.")


def stage_losses(
    model: FlashSlothForConditionalGeneration,
    batch: Batch,
    images: BaseModelOutputWithPooling,
    readers: NumberReaders | None = None,
) -> dict[str, torch.Tensor]:
    """The language loss on captions or answers and, where EmbQ reads, those on where it looks; scalars.

    `images` are what the model sees of the batch's patches. With `readers` of numbers, their losses come along.
    """
    embq = model.model.embq
    with (
        recorded_scores(embq.image_attention) if embq is not None else nullcontext([]) as scores,
        number_read(model) if readers and embq is not None else nullcontext({}) as read,
    ):
        hidden_states = model.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, mm_encoder_outputs={"image": images}
        ).last_hidden_state  # (B, L, D)
    next_ids = batch.labels[:, 1:]
    answered = next_ids != IGNORED
    # The language head runs where an answer is due only, one position in twenty.
    logits = model.lm_head(hidden_states[:, :-1][answered]).float()
    weights = batch.weights[:, 1:][answered]
    losses = {"answers": (cross_entropy(logits, next_ids[answered], reduction="none") * weights).sum() / weights.sum()}
    if scores and batch.grounding is not None:
        asked = batch.grounding.asked  # (B, R)
        shares = attention_shares(scores[0], asked.shape[1])  # (B, R, Q, H, P)
        losses["grounding"] = grounding_loss(shares, batch.grounding.in_windows(shares.shape[-1]))
        if shares.shape[2] > 1:
            losses["overlap"] = overlap_loss(shares.mean(3), asked)
        if read:
            is_query = batch.input_ids == model.config.query_token_id
            losses |= readers(read["update"], read["hidden"], is_query, batch.grounding)
    return losses
