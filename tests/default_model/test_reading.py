"""The readers of numbers: what they are given, what their losses are, and when the model learns from them."""

from dataclasses import replace

import pytest
import torch

from conversion.default_model import train
from conversion.default_model.features import FeatureBank
from conversion.default_model.grounding import Grounding
from conversion.default_model.parts import images_of
from conversion.default_model.pictures import Pictures
from conversion.default_model.reading import FIRST_LEARN, NumberReaders, number_read
from conversion.default_model.rows import RowEncoder
from conversion.default_model.stages import COUNTING, Draw, stage_losses
from tests.default_model.fakes import fake_easy_vqa, fake_glyphs

CPU = torch.device("cpu")
WIDTH, QUERIES = 4, 2


def grounding(numbers: torch.Tensor, counted: list[list[bool]]) -> Grounding:
    """Of runs that count or do not, (B, R), things in the ninths `numbers` (B, R, 9)."""
    mask = torch.tensor(counted)
    return Grounding(mask[..., None], mask[..., None, None], mask[..., None, None], numbers)


def is_query() -> torch.Tensor:
    """Two rows of 10: one with two runs of two queries, one with a single run."""
    rows = torch.zeros(2, 10, dtype=torch.bool)
    rows[0, [2, 3, 7, 8]] = True
    rows[1, [4, 5]] = True
    return rows


def test_the_last_query_of_each_counting_run_is_read():
    """With weights that pass a value on, the losses say which positions were read."""
    readers = NumberReaders(WIDTH)
    for reader in (readers.ninths, readers.number):
        reader.weight.data[:, 0] = 1
    update, hidden = torch.zeros(2, 2 * QUERIES, WIDTH), torch.zeros(2, 10, WIDTH)
    update[0, 3, 0], update[1, 1, 0] = 1.0, 0.0  # the last query of row 0's second run, and that of row 1
    hidden[0, 8, 0], hidden[1, 5, 0] = 2.0, -1.0
    numbers = torch.zeros(2, 2, 9, dtype=torch.long)
    numbers[0, 1, :5] = torch.tensor([1, 1, 1, 1, 2])  # six things in five ninths
    readers.scales.fill_(1.0)
    readers.calls.fill_(1)
    losses = readers(update, hidden, is_query(), grounding(numbers, [[False, True], [True, False]]))
    assert losses["ninths"].item() == pytest.approx((4 * 1.0 + 5 * 0.0) / 18)
    assert losses["number"].item() == pytest.approx(((2 + 3 - 6) ** 2 + (-1 + 3 - 0) ** 2) / 2)


def test_nothing_is_read_where_nothing_is_counted():
    none = grounding(torch.zeros(2, 2, 9, dtype=torch.long), [[False, False], [False, False]])
    readers = NumberReaders(WIDTH)
    assert readers(torch.ones(2, 4, WIDTH), torch.ones(2, 10, WIDTH), is_query(), none) == {}
    assert not readers.calls


def test_the_readers_learn_first_and_the_model_after_them():
    torch.manual_seed(0)
    readers = NumberReaders(WIDTH)
    update, hidden = (torch.randn(2, n, WIDTH, requires_grad=True) for n in (4, 10))
    counts = grounding(torch.ones(2, 2, 9, dtype=torch.long), [[True, True], [True, False]])
    for call in range(FIRST_LEARN + 1):
        losses = readers(update, hidden, is_query(), counts)
        into_model = torch.autograd.grad(sum(losses.values()), (update, hidden), allow_unused=True) if call else ()
        assert all((grad is not None) == (call == FIRST_LEARN) for grad in into_model)
    assert torch.equal(
        readers.scales, torch.stack([update[[0, 0, 1], [1, 3, 1]].std(), hidden[[0, 0, 1], [3, 8, 5]].std()])
    )


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """A model and a batch of its questions about numbers."""
    fake_glyphs(monkeypatch)
    fake_easy_vqa(monkeypatch)
    tokenizer = train.load_tokenizer(train.DEFAULT_CHECKPOINT)
    torch.manual_seed(0)
    model = train.build_model(tokenizer, CPU)
    bank = FeatureBank(tmp_path, Pictures(0), 8, model.model.vision_tower)
    bank.fill()
    stage = replace(COUNTING, rows=8, captions=0.0, blindfolded=0.0, misled=0.0, counts_first=1.0)
    batch, _, reads = Draw(stage, bank, RowEncoder(tokenizer, 9), model.config, 0)(0)
    assert reads == "its own" and batch.grounding.counted.any()
    return model, batch


def test_what_is_read_is_what_embq_adds_and_the_next_layer_makes(counting):
    model, batch = counting
    images = images_of(model, batch.patches.float())
    with number_read(model) as read, torch.no_grad():
        states = model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            mm_encoder_outputs={"image": images},
            output_hidden_states=True,
        ).hidden_states
    assert torch.equal(read["hidden"], states[model.config.embq_layer + 1])
    assert read["update"].shape == (8, 9 * batch.grounding.asked.shape[1], model.config.text_config.hidden_size)
    before = read["hidden"]
    with torch.no_grad():
        stage_losses(model, batch, images)
    assert read["hidden"] is before, "outside of the block nothing is noted"


def test_the_losses_reach_what_embq_reads_with(counting):
    model, batch = counting
    images = images_of(model, batch.patches.float())
    readers = NumberReaders(model.config.text_config.hidden_size)
    readers.calls.fill_(FIRST_LEARN)
    readers.scales.fill_(1.0)
    for reader in (readers.ninths, readers.number):
        torch.nn.init.normal_(reader.weight)
    losses = stage_losses(model, batch, images, readers)
    assert set(losses) == {"answers", "grounding", "overlap", "ninths", "number"}
    assert set(stage_losses(model, batch, images)) == {"answers", "grounding", "overlap"}
    for name in ("ninths", "number"):
        value = model.model.embq.image_attention.v_proj.weight
        (gradient,) = torch.autograd.grad(losses[name], value, retain_graph=True)
        assert gradient.abs().sum() > 0
