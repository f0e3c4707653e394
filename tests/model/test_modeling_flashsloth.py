import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

import transformers_flashsloth
from tests.golden_model import (
    CASES,
    GOLDENS,
    IMAGE,
    QUERY,
    USER_PREFIX,
    load_case,
    our_name,
    pad,
    pixels,
    tiny_config,
    tiny_model,
)
from tests.needs_gpu import needs_gpu
from transformers_flashsloth import FlashSlothForConditionalGeneration, FlashSlothModel

IMAGE_TURN = [*[IMAGE] * 9, 198]
RUN = [*[QUERY] * 9, 24994, 8808, 8643, 25]
# Rows with one image, two images in two turns, and none; the images of all rows in reading order.
ROWS = [
    [32, 25, *IMAGE_TURN, 2061, 318, 30, *RUN],
    [32, 25, *IMAGE_TURN, 10, *RUN, 317, 3797, *USER_PREFIX, *IMAGE_TURN, 20, 21, 22, *RUN],
    [32, 25, 6350, 30, *RUN],
]
IMAGES_OF_ROWS = [["a"], ["b", "c"], []]


@pytest.fixture(scope="module")
def model() -> FlashSlothForConditionalGeneration:
    return tiny_model()


def inputs_of(rows: list[int], side: str = "left") -> dict[str, torch.Tensor]:
    names = [name for row in rows for name in IMAGES_OF_ROWS[row]]
    inputs = {
        "input_ids": pad([ROWS[row] for row in rows], side),
        "attention_mask": pad([[1] * len(ROWS[row]) for row in rows], side, value=0),
    }
    return inputs | ({"pixel_values": pixels(*names)} if names else {})


def without_dropout(model: nn.Module) -> nn.Module:
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


class TestGoldens:
    @pytest.mark.parametrize("name", CASES)
    def test_forward(self, model, name):
        case = load_case(name)
        real = case.inputs["attention_mask"].bool()
        with torch.no_grad():
            hidden = model.model(**{k: v for k, v in case.inputs.items() if k != "labels"}).last_hidden_state
            outputs = model(**case.inputs)
        logits = outputs.logits[real]

        def close(found, golden):
            torch.testing.assert_close(found, golden, rtol=0, atol=1e-4 * golden.abs().max().item())

        close(hidden[real], case.golden["last_hidden"][real])
        close(logits[..., ::1024], case.golden["logits_slim"][real])
        close(logits.logsumexp(-1), case.golden["logits_logsumexp"][real])
        assert torch.equal(logits.argmax(-1), case.golden["logits_argmax"][real])
        if "loss" in case.golden:
            close(outputs.loss, case.golden["loss"][0])

    @pytest.mark.parametrize("name", ["sd_single", "hd_single"])
    def test_greedy_tokens(self, model, name):
        case = load_case(name)
        tokens = model.generate(**case.inputs, max_new_tokens=16, do_sample=False, eos_token_id=None)
        assert tokens[:, -16:].tolist() == case.golden["generated"].tolist()

    @pytest.mark.parametrize("name", ["sd_train_batch", "hd_train_batch"])
    def test_gradients(self, name):
        model = without_dropout(tiny_model())
        model.model.vision_tower.requires_grad_(False)
        model(**load_case(name).inputs).loss.backward()
        golden = json.loads((GOLDENS / f"{name}_grad_norms.json").read_text())
        parameters = dict(model.named_parameters())
        for authors_name, norm in golden.items():
            found = parameters[our_name(authors_name)].grad
            assert found.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-8), authors_name
        assert len(golden) == sum(parameter.grad is not None for parameter in parameters.values())


class TestBatches:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_ragged_rows_equal_single_rows(self, model, side):
        with torch.no_grad():
            batch = inputs_of([0, 1, 2], side)
            together = model(**batch).logits
            for row in range(3):
                alone = model(**inputs_of([row])).logits[0]
                found = together[row][batch["attention_mask"][row].bool()]
                torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)

    def test_left_padded_generation_equals_single_rows(self, model):
        def answer(rows):
            tokens = model.generate(**inputs_of(rows), max_new_tokens=8, do_sample=False, eos_token_id=None)
            return tokens[:, -8:].tolist()

        assert answer([2, 0, 1]) == [answer([row])[0] for row in (2, 0, 1)]

    def test_each_image_matters_to_its_row_alone(self, model):
        inputs = inputs_of([0, 1, 2])
        with torch.no_grad():
            before = model(**inputs).logits
            inputs["pixel_values"] = pixels("a", "b", "another")
            changed = (model(**inputs).logits - before).abs().amax(dim=(1, 2))
        assert changed[1] > 1e-3
        assert changed[[0, 2]].max() == 0


class TestForward:
    def test_outputs_carry_what_images_became(self, model):
        inputs = inputs_of([0, 1])
        with torch.no_grad():
            outputs, core = model(**inputs), model.model(**inputs)
            images = model.get_image_features(inputs["pixel_values"], return_dict=True)
            alone = model(input_ids=inputs["input_ids"][:, -2:])
        for one in (outputs, core):
            assert torch.equal(one.image_outputs.last_hidden_state, images.last_hidden_state)
            assert one.image_hidden_states is one.image_outputs.pooler_output
        assert alone.image_outputs is None and alone.image_hidden_states is None

    def test_inputs_embeds_equal_ids(self, model):
        inputs = inputs_of([0, 1])
        embeds = {k: v for k, v in inputs.items() if k != "input_ids"}
        embeds["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
        with torch.no_grad():
            torch.testing.assert_close(model(**embeds).logits, model(**inputs).logits)

    def test_encoded_images_equal_pixels(self, model):
        inputs = inputs_of([0, 1])
        with torch.no_grad():
            expected = model(**inputs)
            images = model.get_image_features(inputs.pop("pixel_values"))
            found = model(**inputs, mm_encoder_outputs={"image": images})
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.image_hidden_states, images.pooler_output)
        assert images.last_hidden_state.shape == (3, 81, 1152)
        assert images.pooler_output.shape == (3, 9, 80)

    def test_logits_to_keep(self, model):
        inputs = inputs_of([0])
        with torch.no_grad():
            full = model(**inputs).logits
            torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, full[:, -2:])
            kept = torch.tensor([0, 5])
            torch.testing.assert_close(model(**inputs, logits_to_keep=kept).logits, full[:, kept])

    def test_outputs_are_recorded(self, model):
        model.set_attn_implementation("eager")
        outputs = model(**inputs_of([0]), output_hidden_states=True, output_attentions=True)
        model.set_attn_implementation("sdpa")
        assert (len(outputs.hidden_states), len(outputs.attentions)) == (11, 10)
        assert isinstance(model(**inputs_of([0]), return_dict=False), tuple)

    @pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
    def test_attention_implementations_agree(self, model, implementation):
        inputs = inputs_of([0, 1, 2])
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected = model(**inputs).logits[real]
            model.set_attn_implementation(implementation)
            found = model(**inputs).logits[real]
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    @needs_gpu
    def test_flash_attention_agrees(self, model):
        pytest.importorskip("flash_attn")
        cuda = copy.deepcopy(model).to("cuda", torch.bfloat16)
        inputs = {k: v.to("cuda") for k, v in inputs_of([0, 1, 2]).items()}
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected = cuda(**inputs).logits[real]
            cuda.set_attn_implementation("flash_attention_2")
            found = cuda(**inputs).logits[real]
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_finite(self, model, dtype):
        with torch.no_grad():
            assert copy.deepcopy(model).to(dtype)(**inputs_of([0, 1, 2])).logits.isfinite().all()

    def test_traces_without_data_dependence(self, model):
        graph_breaks = torch._dynamo.explain(model)(**inputs_of([0, 1])).graph_break_count
        assert graph_breaks == 0


class TestTraining:
    def test_labels_at_placeholders_are_never_trained_on(self, model):
        inputs = inputs_of([0, 1, 2])
        careless = inputs["input_ids"].clone()
        careless[inputs["attention_mask"] == 0] = -100
        placeholders = (inputs["input_ids"] == IMAGE) | (inputs["input_ids"] == QUERY)
        with torch.no_grad():
            expected = model(**inputs, labels=careless.masked_fill(placeholders, -100)).loss
            for label in (7, IMAGE):
                assert model(**inputs, labels=careless.masked_fill(placeholders, label)).loss == expected

    @pytest.mark.parametrize("rows", [[0, 1, 2], [2], [0]])
    def test_every_parameter_gets_a_gradient(self, rows):
        model = tiny_model().train()
        inputs = inputs_of(rows)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert missing == []
        vision = sum(parameter.grad.abs().sum() for parameter in model.model.vision_tower.parameters())
        assert (vision > 0) == any(IMAGES_OF_ROWS[row] for row in rows)

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_gradient_checkpointing_changes_nothing(self, use_reentrant):
        inputs = inputs_of([0, 1, 2])
        gradients = []
        for checkpointed in (False, True):
            model = without_dropout(tiny_model())
            if checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
                model.enable_input_require_grads()
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for name, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-5, msg=name)


class TestErrors:
    @pytest.mark.parametrize("shape", [(3, 126, 126), (1, 3, 126, 126), (1, 1, 3, 384, 384), (1, 1, 1, 126, 126)])
    def test_pixel_shape(self, model, shape):
        with pytest.raises(ValueError, match=r"\(images, views, 3, 126, 126\), got \(" + str(shape[0])):
            model(input_ids=torch.tensor([ROWS[0]]), pixel_values=torch.zeros(shape))

    def test_wrong_number_of_images(self, model):
        with pytest.raises(ValueError, match="Image features and image tokens do not match: 2 images of 9"):
            model(input_ids=torch.tensor([ROWS[0]]), pixel_values=pixels("a", "b"))
        with pytest.raises(ValueError, match="Image features and image tokens do not match: 0 images"):
            model(input_ids=torch.tensor([ROWS[0]]))

    def test_nothing_is_encoded_before_placeholders_are_checked(self, model):
        encoded = []
        handle = model.model.vision_tower.register_forward_hook(lambda *_: encoded.append(1))
        with pytest.raises(ValueError, match="do not match"):
            model(input_ids=torch.tensor([ROWS[0]]), pixel_values=pixels("a", "b"))
        handle.remove()
        assert not encoded

    def test_cut_query_run(self, model):
        with pytest.raises(ValueError, match="query run that is not 9 tokens"):
            model(input_ids=torch.tensor([ROWS[0][:-6]]), pixel_values=pixels("a"))

    def test_beyond_the_context(self, model):
        with pytest.raises(ValueError, match="context is 2048"):
            model(input_ids=torch.ones(1, 2049, dtype=torch.long))

    def test_contradicting_inputs(self, model):
        with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
            model()
        images = model.get_image_features(pixels("a"))
        with pytest.raises(ValueError, match="not both"):
            model(**inputs_of([0]), mm_encoder_outputs={"image": images})


class TestCheckpoints:
    def test_round_trip(self, model, tmp_path):
        model.save_pretrained(tmp_path, max_shard_size="10MB")
        inputs = inputs_of([0, 1])
        for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM, FlashSlothForConditionalGeneration):
            loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is FlashSlothForConditionalGeneration
            assert not any(info.values()), info
            with torch.no_grad():
                torch.testing.assert_close(loaded.eval()(**inputs).logits, model(**inputs).logits)
            expected = model.state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
        assert type(AutoModel.from_pretrained(tmp_path)) is FlashSlothModel

    def test_every_parameter_is_initialised(self, monkeypatch):
        # Uninitialised memory shows as NaN.
        def poisoned(*args, **kwargs):
            tensor = empty(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        empty = torch.empty
        monkeypatch.setattr(torch, "empty", poisoned)
        monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda module: None)
        model = FlashSlothForConditionalGeneration(tiny_config())
        monkeypatch.undo()
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), name
        queries = model.model.query_tokens.weight
        assert 0 < queries.abs().max() <= 1 / 80**0.5  # kaiming uniform with a = sqrt(5)

    def test_a_missing_part_is_initialised_on_load(self, model, tmp_path):
        partial = copy.deepcopy(model)
        state = {k: v for k, v in partial.state_dict().items() if "embq" not in k and "query_tokens" not in k}
        partial.save_pretrained(tmp_path, state_dict=state)
        loaded, info = FlashSlothForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert all("embq" in name or "query_tokens" in name for name in info["missing_keys"])
        assert all(parameter.isfinite().all() for parameter in loaded.parameters())

    def test_embeddings_can_be_resized(self):
        model = tiny_model()
        model.resize_token_embeddings(51300)
        assert model.get_output_embeddings().out_features == 51300
        with torch.no_grad():
            assert model(**inputs_of([0])).logits.shape[-1] == 51300

    def test_parts_go_by_their_standard_names(self, model):
        assert model.get_decoder() is model.model.language_model
        assert model.get_encoder("image") is model.model.vision_tower
        assert model.base_model is model.model
        assert model.model.multi_modal_projector is not None
        assert model.get_output_embeddings() is model.lm_head


def test_importing_twice_registers_once():
    import importlib

    importlib.reload(transformers_flashsloth)


def test_copies_run_on_their_own_parts(model):
    # The seam must not tie a copy to the original's EmbQ.
    copied = copy.deepcopy(model)
    nn.init.zeros_(copied.model.embq.up_proj.weight)
    nn.init.zeros_(copied.model.embq.up_proj.bias)
    with torch.no_grad():
        before, after = model(**inputs_of([0])).logits, copied(**inputs_of([0])).logits
    assert (before - after).abs().max() > 1e-3
