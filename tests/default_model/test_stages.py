"""The stages behind the tower: what they draw, what learns, and how they go on after an interruption."""

from dataclasses import replace
from random import Random

import pytest
import torch

from conversion.default_model import stages, train
from conversion.default_model.architecture import model_config
from conversion.default_model.features import FeatureBank, fingerprint
from conversion.default_model.optimisation import Budget
from conversion.default_model.parts import images_of, pooled_images_of, without_embq
from conversion.default_model.pictures import Pictures
from conversion.default_model.rows import RowEncoder
from conversion.default_model.stages import (
    ALIGNMENT,
    COUNTING,
    INSTRUCTION,
    LOOKING,
    STAGES,
    Draw,
    Stage,
    chosen,
    run_stage,
    says_where,
    stage_losses,
)
from tests.default_model.fakes import fake_easy_vqa, fake_glyphs

CPU = torch.device("cpu")
TOKENIZER = train.load_tokenizer(train.DEFAULT_CHECKPOINT)
CONFIG = model_config(TOKENIZER)
ZERO = torch.zeros((), requires_grad=True)


@pytest.fixture(autouse=True)
def data(monkeypatch):
    fake_glyphs(monkeypatch)
    fake_easy_vqa(monkeypatch)


def model(**choices):
    torch.manual_seed(0)
    return train.build_model(TOKENIZER, CPU, **choices)


def bank_for(model, directory, count=6) -> FeatureBank:
    bank = FeatureBank(directory, Pictures(0), count, model.model.vision_tower)
    bank.fill()
    return bank


def draw_of(stage, bank) -> Draw:
    return Draw(stage, bank, RowEncoder(TOKENIZER, 9), CONFIG, 0)


def losses_of(model, batch) -> dict[str, torch.Tensor]:
    return stage_losses(model, batch, images_of(model, batch.patches.float()))


def test_the_same_number_is_the_same_picture():
    pictures = Pictures(3)
    first, again = pictures[17], Pictures(3)[17]
    assert (first.image == again.image).all() and first.things == again.things
    assert any((pictures[number].image != Pictures(4)[number].image).any() for number in range(5))


def test_features_are_the_towers_and_filling_goes_on(tmp_path, monkeypatch):
    whole = model()
    tower = whole.model.vision_tower
    bank = bank_for(whole, tmp_path)
    pixels = torch.from_numpy(bank.pictures[4].image).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        expected = tower(pixels).last_hidden_state
    torch.testing.assert_close(bank[[4]].float(), expected, rtol=0.1, atol=0.1)

    bank.finished.write_text("5")
    bank.values[:] = 0
    again = bank_for(whole, tmp_path)
    assert not again[[4]].any() and again[[5]].any()
    with torch.no_grad():
        tower.embeddings.patch_embedding.bias += 1
    assert not FeatureBank(tmp_path, Pictures(0), 6, tower).finished.exists(), "another tower, another file"


def test_batches_are_the_same_again_and_as_the_stage_says(tmp_path):
    bank = bank_for(model(), tmp_path)
    stage = replace(INSTRUCTION, rows=3, captions=0.5, blindfolded=0.3, misled=0.3, windows={2: 1.0, 6: 1.0})
    draw = draw_of(stage, bank)
    drawn = [draw(index) for index in range(40)]
    assert torch.equal(drawn[7][0].input_ids, draw(7)[0].input_ids)
    assert {window for _, window, reads in drawn if reads != "another"} == {(2, 2), (6, 6)}
    assert {window for _, window, reads in drawn if reads == "another"} == {(3, 3)}, "the model's own"
    assert {batch.grounding is None for batch, _, _ in drawn} == {True, False}
    assert {reads for batch, _, reads in drawn if batch.grounding is not None} == {"its own", "another", "none"}
    assert {reads for batch, _, reads in drawn if batch.grounding is None} == {"none"}, "captions ask nothing"
    for batch, window, _ in drawn:
        assert ((batch.input_ids == draw.encoder.image[0]).sum(1) == (12 // window[0]) ** 2).all()

    aligned = [draw_of(replace(ALIGNMENT, rows=3), bank)(index) for index in range(20)]
    assert {reads for _, _, reads in aligned} == {"none"}, "EmbQ rests in alignment"
    assert {batch.grounding is None for batch, _, _ in aligned} == {True, False}, "captions and questions"


def test_images_are_what_the_model_makes_of_pixels():
    whole = model().eval()
    pixels = torch.randn(2, 1, 3, 96, 96)
    with torch.no_grad():
        expected = whole.get_image_features(pixels)
        made = images_of(whole, expected.last_hidden_state)
        pooled = pooled_images_of(whole, expected.last_hidden_state)
    assert torch.equal(made.pooler_output, expected.pooler_output)
    assert torch.equal(made.last_hidden_state, expected.last_hidden_state)
    assert pooled.last_hidden_state.shape == (2, 16, 192) and torch.equal(pooled.pooler_output, made.pooler_output)


@pytest.mark.parametrize("pool", [images_of, pooled_images_of])
@pytest.mark.parametrize(("side", "tokens"), [(2, 36), (3, 16), (12, 1)])
def test_pictures_are_seen_in_windows(pool, side, tokens):
    seen = pool(model(), torch.randn(1, 144, 192), (side, side))
    assert seen.pooler_output.shape[1] == tokens
    assert seen.last_hidden_state.shape[1] == (144 if pool is images_of else tokens)


def test_the_config_names_the_windows_of_training():
    assert model().config.pooling_windows == sorted(INSTRUCTION.windows) == sorted(ALIGNMENT.windows)


def test_all_but_the_tower_learns(tmp_path):
    whole = model()
    whole.model.vision_tower.requires_grad_(False)
    bank = bank_for(whole, tmp_path)
    batch = draw_of(replace(INSTRUCTION, rows=4, captions=0.0, windows={3: 1.0}), bank)(0)[0]
    losses = losses_of(whole, batch)
    assert set(losses) == {"answers", "grounding", "overlap"}
    losses["answers"].backward()
    # Key biases shift all scores of a query alike, which a softmax does not see.
    still = {name for name, p in whole.named_parameters() if p.grad is None or not p.grad.any()}
    still = {name for name in still if not name.endswith(("k_proj.bias", "score_proj.bias"))}
    assert all("vision_tower" in name for name in still), still


def test_the_answers_loss_is_the_models_own(tmp_path):
    whole = model()
    bank = bank_for(whole, tmp_path)
    batch = draw_of(replace(INSTRUCTION, rows=4, captions=0.0, windows={3: 1.0}), bank)(0)[0]
    batch = batch._replace(weights=(batch.labels != -100).float())
    images = images_of(whole, batch.patches.float())
    expected = whole(
        batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, mm_encoder_outputs={"image": images}
    ).loss
    torch.testing.assert_close(losses_of(whole, batch)["answers"], expected)


def test_without_embq_patches_are_not_read(tmp_path):
    whole = model()
    bank = bank_for(whole, tmp_path)
    batch = draw_of(replace(INSTRUCTION, rows=4, captions=0.0, windows={3: 1.0}), bank)(0)[0]
    with without_embq(whole):
        losses = losses_of(whole, batch)
    assert set(losses) == {"answers"}
    losses["answers"].backward()
    assert whole.model.embq.up_proj.weight.grad is None
    assert set(losses_of(whole, batch)) == {"answers", "grounding", "overlap"}


def test_misled_embq_reads_another_picture_and_is_not_told_where_to_look(tmp_path, monkeypatch):
    """Each row's visual tokens are its own picture's, what EmbQ reads another's, and nothing is said of its maps."""
    whole = model()
    bank = bank_for(whole, tmp_path)
    seen = []
    monkeypatch.setattr(
        stages,
        "stage_losses",
        lambda model, batch, images, readers: seen.append((batch, images)) or {"answers": ZERO.clone()},
    )
    monkeypatch.setattr(stages.Optimisers, "step", lambda *args: None)
    stage = replace(INSTRUCTION, rows=3, captions=0.0, blindfolded=0.0, misled=1.0)
    run_stage(stage, whole, bank, TOKENIZER, tmp_path / "stage.pt", Budget(steps=1), 0)
    ((batch, images),) = seen
    own = images_of(whole, batch.patches.float(), whole.config.window)
    torch.testing.assert_close(images.pooler_output.float(), own.pooler_output, rtol=0.1, atol=0.1)
    for row in range(3):
        assert torch.equal(images.last_hidden_state[row], batch.patches[row - 1].float())
    assert batch.grounding is None


def test_misled_embq_is_not_doubted_about_numbers(monkeypatch, tmp_path):
    """Visual tokens hardly know a number: to believe them there would teach not to count."""
    drawn = draw_of(
        replace(INSTRUCTION, rows=6, captions=0.0, blindfolded=0.0, misled=0.5), bank_for(model(), tmp_path)
    )
    told = {reads: set() for reads in ("its own", "another")}
    turns_of = RowEncoder.turns

    def noted(*args) -> list:
        turns = turns_of(*args)
        asked.update(turn.family for turn in turns)
        return turns

    monkeypatch.setattr(RowEncoder, "turns", staticmethod(noted))
    for index in range(12):
        asked = set()
        told[drawn(index)[2]] |= asked
    assert told["its own"] - told["another"] == {"count"} and len(told["another"]) > 2


def test_alignment_leaves_embq_as_it_was(tmp_path):
    whole = model()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    run_stage(
        replace(ALIGNMENT, rows=2),
        whole,
        bank_for(whole, tmp_path),
        TOKENIZER,
        tmp_path / "a.pt",
        Budget(steps=2),
        seed=0,
    )
    moved = {name for name, value in whole.state_dict().items() if not torch.equal(value, before[name])}
    assert any("pooling" in name for name in moved) and any("language_model" in name for name in moved)
    assert not any("embq" in name or "vision_tower" in name for name in moved)


def test_embq_alone_learns_where_to_look(tmp_path):
    whole = model()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    bank = bank_for(whole, tmp_path)
    run_stage(replace(LOOKING, rows=2), whole, bank, TOKENIZER, tmp_path / "l.pt", Budget(steps=2), seed=0)
    moved = {name for name, value in whole.state_dict().items() if not torch.equal(value, before[name])}
    assert any("image_attention.q_proj" in name for name in moved) and all("embq" in name for name in moved)
    assert all(says_where(name) for name in moved), "what it makes of what it finds is learnt later"
    run_stage(replace(INSTRUCTION, rows=2), whole, bank, TOKENIZER, tmp_path / "i.pt", Budget(steps=1), seed=0)
    assert all(p.requires_grad != ("vision_tower" in name) for name, p in whole.named_parameters())


def test_in_instruction_what_says_where_embq_looks_learns_slowly(tmp_path, monkeypatch):
    whole, rates = model(), {}
    optimisers = stages.Optimisers

    def noted(modules, *args, rate_of):
        rates.update({name: rate_of(name) for name, _ in modules[0].named_parameters()})
        return optimisers(modules, *args, rate_of=rate_of)

    monkeypatch.setattr(stages, "Optimisers", noted)
    bank = bank_for(whole, tmp_path)
    run_stage(replace(INSTRUCTION, rows=2), whole, bank, TOKENIZER, tmp_path / "i.pt", Budget(steps=1), seed=0)
    slow = {name.removeprefix("model.embq.").rpartition(".")[0] for name, rate in rates.items() if rate == 0.25}
    attentions = {f"{of}_attention.{part}_proj" for of in ("question", "image") for part in "qkv"}
    norms = {f"{of}_norm" for of in ("query", "question", "image")}
    assert slow == attentions - {"image_attention.v_proj"} | norms | {"text_down_proj", "image_down_proj"}
    assert set(rates.values()) == {0.25, 1.0}


def test_the_stages_come_in_the_order_of_what_they_need():
    assert [stage.name for stage in STAGES] == ["alignment", "looking", "instruction", "counting"]


@pytest.mark.parametrize("stage", (INSTRUCTION, COUNTING), ids=lambda stage: stage.name)
def test_a_stage_goes_on_as_if_never_interrupted(tmp_path, stage):
    stage = replace(stage, rows=2)
    bank = bank_for(model(), tmp_path)
    once, twice = model(), model()
    run_stage(stage, once, bank, TOKENIZER, tmp_path / "once.pt", Budget(steps=4), seed=0)
    # A schedule follows the planned batches: stopping after two of four is an interruption.
    interrupted = Budget(steps=4)
    interrupted.spent = lambda step: step >= 2
    run_stage(stage, twice, bank, TOKENIZER, tmp_path / "twice.pt", interrupted, seed=0)
    fresh = model()
    run_stage(stage, fresh, bank, TOKENIZER, tmp_path / "twice.pt", Budget(steps=4), seed=0)
    for name, value in once.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, msg=name)
    assert not torch.equal(once.model.query_tokens.weight, twice.model.query_tokens.weight)
    readers = [torch.load(tmp_path / name, weights_only=True).get("readers", {}) for name in ("once.pt", "twice.pt")]
    assert len(readers[0]) == (6 if stage.name == "counting" else 0)
    for name, value in readers[0].items():
        torch.testing.assert_close(readers[1][name], value, msg=name)


def test_a_stage_refuses_what_another_tower_left(tmp_path):
    whole = model()
    bank = bank_for(whole, tmp_path)
    stage = replace(ALIGNMENT, rows=2)
    run_stage(stage, whole, bank, TOKENIZER, tmp_path / "stage.pt", Budget(steps=1), seed=0)
    before = fingerprint(whole.model.vision_tower.state_dict())
    with torch.no_grad():
        whole.model.vision_tower.embeddings.patch_embedding.bias += 1
    assert fingerprint(whole.model.vision_tower.state_dict()) != before
    with pytest.raises(ValueError, match="trained behind another vision tower"):
        run_stage(stage, whole, bank, TOKENIZER, tmp_path / "stage.pt", Budget(steps=1), seed=0)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    whole, other = model(), model(num_query_tokens=0)
    bank = bank_for(whole, tmp_path)
    stage = replace(ALIGNMENT, rows=2)
    run_stage(stage, whole, bank, TOKENIZER, tmp_path / "stage.pt", Budget(steps=1), seed=0)
    with pytest.raises(ValueError, match=r"not of this model; it differs in .*embq"):
        run_stage(stage, other, bank, TOKENIZER, tmp_path / "stage.pt", Budget(steps=1), seed=0)


def test_random_is_not_shared_between_stages(tmp_path):
    bank = bank_for(model(), tmp_path)
    assert Random("alignment 0 0").random() != Random("instruction 0 0").random()
    first, second = (draw_of(replace(stage, rows=6, captions=1.0), bank)(0)[0] for stage in (ALIGNMENT, INSTRUCTION))
    assert not torch.equal(first.patches, second.patches)


def test_what_a_stage_chooses_is_all_that_tells_it_from_another():
    """A field that a stage says nothing of, such as one that a later commit adds, does not."""
    assert chosen(Stage("a", rows=2, captions=0.5)) == {"name": "a", "rows": 2, "captions": 0.5}
    assert chosen(replace(LOOKING, rate=0.5)) == chosen(LOOKING) | {"rate": 0.5}
    for stage in STAGES:
        assert Stage(**chosen(stage)) == stage
