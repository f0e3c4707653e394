"""Direct loading of checkpoints in the authors' format: what works, and how bad ones are refused."""

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PhiConfig, PhiForCausalLM

from tests.authors_directory import (
    CONFIG,
    GOLDENS,
    SHAPES,
    authors_weights,
    write_authors_checkpoint,
    write_json,
    write_tokenizer,
)
from tests.golden_model import load_case
from transformers_flashsloth import (
    FlashSlothConfig,
    FlashSlothForConditionalGeneration,
    FlashSlothModel,
    FlashSlothProcessor,
)
from transformers_flashsloth.authors.format import (
    config_from_authors,
    config_to_authors,
    to_authors_name,
    to_our_name,
)
from transformers_flashsloth.authors.loading import model_shapes

RELEASED_CONFIG = json.loads((GOLDENS / "released_config.json").read_text())
PROMPTS = json.loads((GOLDENS / "prompts.json").read_text(encoding="utf-8"))["cases"]
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def copy(authors_directory, tmp_path):
    """A directory whose files can be removed or replaced."""
    directory = tmp_path / "copy"
    shutil.copytree(authors_directory, directory, copy_function=os.link)
    return directory


@pytest.fixture(scope="module")
def loaded(authors_directory):
    """The model and what its loading reported."""
    return load(authors_directory, output_loading_info=True)


@pytest.fixture(scope="module")
def processor(authors_directory):
    return FlashSlothProcessor.from_pretrained(authors_directory)


def replace(file, content: bytes | dict):
    """Writes a new file in the place of one that may be linked."""
    file.unlink(missing_ok=True)
    if isinstance(content, dict):
        write_json(file, content)
    else:
        file.write_bytes(content)


def without_auto_map(processor) -> dict:
    """The options of a processor and its parts, but for where their code is and the classes of upstream's defaults."""
    options = processor.to_dict()
    for name in ("image_processor", "video_processor"):
        options[name] = {key: value for key, value in options[name].items() if key != "auto_map"}
    return {name: value for name, value in options.items() if name != "auto_map"}


def load(path, **kwargs):
    return FlashSlothForConditionalGeneration.from_pretrained(path, **kwargs)


class TestNames:
    def test_the_released_checkpoint_has_our_tensors_each_once(self):
        released = json.loads((GOLDENS / "released_checkpoint_keys.json").read_text())
        config = FlashSlothConfig.from_dict(config_from_authors(RELEASED_CONFIG))
        shapes = model_shapes(config)
        assert len(released) == 905
        assert {to_our_name(name): tuple(shape) for name, shape in released.items()} == shapes
        assert [to_authors_name(to_our_name(name)) for name in released] == list(released)

    @pytest.mark.parametrize("name", ["model.vision_model.x", "transformer.h.0", "model.lqformer.layers.1.ln_q.bias"])
    def test_a_stranger_has_no_name(self, name):
        with pytest.raises(KeyError):
            to_our_name(name)


class TestConfig:
    def test_the_released_config_is_our_default(self):
        config, default = FlashSlothConfig.from_dict(config_from_authors(RELEASED_CONFIG)), FlashSlothConfig()
        assert config.dtype == torch.float16
        config.dtype, config.architectures = default.dtype, default.architectures
        assert config.to_dict() == default.to_dict()

    @pytest.mark.parametrize("entries", [CONFIG, RELEASED_CONFIG], ids=["tiny", "released"])
    @pytest.mark.parametrize("image_hd", [False, True])
    def test_there_and_back(self, entries, image_hd):
        config = FlashSlothConfig.from_dict(config_from_authors(entries))
        authors = config_to_authors(config, image_hd)
        assert authors["image_hd"] is image_hd and ("vision_config" in authors) == ("vision_config" in entries)
        unchanged = authors.keys() & entries.keys() - {"image_hd", "mm_vision_tower", "vision_config"}
        assert {name: authors[name] for name in unchanged} == {name: entries[name] for name in unchanged}
        assert FlashSlothConfig.from_dict(config_from_authors(authors)).to_dict() == config.to_dict()

    def test_rotary_entries_reach_the_decoder(self):
        entries = config_from_authors(CONFIG | {"rope_theta": 5000.0, "partial_rotary_factor": 0.5})
        parameters = FlashSlothConfig.from_dict(entries).text_config.rope_parameters
        assert parameters == {"rope_theta": 5000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}

    def test_another_projector_is_refused(self):
        with pytest.raises(ValueError, match="mlp2x_gelu"):
            config_from_authors(CONFIG | {"mm_projector_type": "linear"})

    def test_a_selected_layer_needs_a_vision_config(self):
        with pytest.raises(ValueError, match="must be -2"):
            config_from_authors(RELEASED_CONFIG | {"mm_vision_select_layer": -3})
        assert config_from_authors(CONFIG | {"mm_vision_select_layer": -3})["vision_config"]["num_hidden_layers"] == 1

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"text_config": {"model_type": "gpt_neox", "vocab_size": 51200}}, "phi decoder"),
            ({"num_query_tokens": 12}, "num_query_tokens"),
            ({"embq_num_heads": 16}, "embq_num_heads"),
        ],
    )
    def test_what_their_format_cannot_say_is_refused(self, changes, fault):
        with pytest.raises(ValueError, match=fault):
            config_to_authors(FlashSlothConfig(**changes), image_hd=False)


class TestModel:
    def test_every_tensor_is_used_and_nothing_is_missing(self, loaded):
        model, report = loaded
        assert not any(report.values())
        state = model.state_dict()
        weights = authors_weights()
        assert len(state) == len(weights)
        assert all(torch.equal(state[to_our_name(name)], tensor) for name, tensor in weights.items())

    @pytest.mark.parametrize("case", ["sd_single", "hd_single"])
    def test_answers_as_the_release(self, loaded, case):
        case = load_case(case)
        generated = loaded[0].generate(**case.inputs, max_new_tokens=16, do_sample=False, eos_token_id=None)
        assert generated[0, -16:].tolist() == case.golden["generated"].flatten().tolist()[-16:]

    def test_generation_ends_at_the_end_of_an_answer(self, loaded, authors_directory):
        config = loaded[0].generation_config
        assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (50296, 50256, 50256)
        wished = load(authors_directory, generation_config=config.from_dict({"eos_token_id": 7}))
        assert wished.generation_config.eos_token_id == 7

    @pytest.mark.parametrize("shards", [1, 3])
    def test_any_number_of_shards_in_half_precision(self, tmp_path, shards):
        weights = authors_weights(torch.float16)
        model, report = load(write_authors_checkpoint(tmp_path, weights, shards), output_loading_info=True)
        assert not any(report.values()) and model.dtype == torch.float16
        state = model.state_dict()
        assert all(torch.equal(state[to_our_name(name)], tensor) for name, tensor in weights.items())

    def test_other_sizes(self, tmp_path):
        sizes = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6, "num_hidden_layers": 9}
        vision = CONFIG["vision_config"] | {"image_size": 84, "num_hidden_layers": 2, "intermediate_size": 32}
        config = FlashSlothConfig.from_dict(config_from_authors(CONFIG | sizes | {"vision_config": vision}))
        shapes = model_shapes(config)
        weights = {to_authors_name(name): torch.zeros(shape) for name, shape in shapes.items()}
        _, report = load(
            write_authors_checkpoint(tmp_path, weights, **sizes, vision_config=vision), output_loading_info=True
        )
        assert not any(report.values())

    def test_in_a_subfolder(self, authors_directory):
        options = {"subfolder": authors_directory.name}
        model, report = load(authors_directory.parent, output_loading_info=True, **options)
        assert not any(report.values()) and model.generation_config.eos_token_id == 50296
        processor = FlashSlothProcessor.from_pretrained(authors_directory.parent, **options)
        assert processor.image_token_id == 50297

    def test_without_the_head(self, authors_directory):
        model, report = FlashSlothModel.from_pretrained(authors_directory, output_loading_info=True)
        assert not report["missing_keys"] and report["unexpected_keys"] == {"lm_head.bias", "lm_head.weight"}
        assert torch.equal(model.query_tokens.weight, authors_weights()["model.learnable_tokens.token"])

    def test_auto_class(self, authors_directory):
        model = AutoModelForImageTextToText.from_pretrained(
            authors_directory, attn_implementation="eager", dtype=torch.bfloat16
        )
        assert type(model) is FlashSlothForConditionalGeneration
        assert model.config._attn_implementation == "eager" and model.dtype == torch.bfloat16

    def test_is_saved_under_our_names(self, loaded, tmp_path):
        model, _ = loaded
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(model.state_dict())
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "flashsloth"
        again, report = load(tmp_path, output_loading_info=True)
        assert not any(report.values())
        assert again.generation_config.eos_token_id == 50296
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
        with pytest.raises(ValueError, match="--to-authors-format"):
            model.save_pretrained(tmp_path, save_original_format=True)


class TestProcessor:
    @pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["prompt"][-60:-22])
    def test_ids_of_the_goldens(self, processor, case):
        ids = processor.tokenizer(case["prompt"]).input_ids
        assert [-200 if token_id == 50297 else token_id for token_id in ids] == case["input_ids"]

    def test_special_tokens(self, processor):
        tokenizer = processor.tokenizer
        assert tokenizer.is_fast and tokenizer.model_max_length == 2048
        assert (processor.image_token_id, processor.query_token_id) == (50297, 50295)
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (50296, 50256, 50256)

    @pytest.mark.parametrize("image_hd", [False, True])
    def test_views_are_those_of_the_config(self, tmp_path, image_hd):
        write_json(tmp_path / "config.json", CONFIG | {"image_hd": image_hd})
        write_tokenizer(tmp_path)
        processor = FlashSlothProcessor.from_pretrained(tmp_path)
        inputs = processor(images=torch.zeros(3, 50, 60), text="<image>\nHm?<learnable>", return_tensors="pt")
        views = 5 if image_hd else 1
        assert inputs.pixel_values.shape == (1, views, 3, 126, 126)
        assert (inputs.input_ids == 50297).sum() == 9 * views
        assert FlashSlothProcessor.from_pretrained(tmp_path, image_hd=True).image_processor.image_hd

    def test_config_without_the_entry_is_base(self, tmp_path):
        write_json(tmp_path / "config.json", {name: value for name, value in CONFIG.items() if name != "image_hd"})
        write_tokenizer(tmp_path)
        assert not FlashSlothProcessor.from_pretrained(tmp_path).image_processor.image_hd

    def test_auto_class_and_round_trip(self, processor, authors_directory, tmp_path):
        auto = AutoProcessor.from_pretrained(authors_directory)
        assert type(auto) is FlashSlothProcessor
        auto.save_pretrained(tmp_path)
        again = AutoProcessor.from_pretrained(tmp_path)
        assert without_auto_map(again) == without_auto_map(processor)
        assert again.chat_template == processor.chat_template
        for case in PROMPTS:
            assert again.tokenizer(case["prompt"]).input_ids == processor.tokenizer(case["prompt"]).input_ids

    def test_a_plain_phi_keeps_its_tokenizer(self, tmp_path):
        PhiConfig().save_pretrained(tmp_path)
        write_tokenizer(tmp_path)
        assert "Tokenizer" in type(AutoProcessor.from_pretrained(tmp_path)).__name__

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"<new>": 50297}, "free for <image>"),
            ({"<new>": 50299}, "without a gap"),
            ({"<learnable>": 50400}, "'</s>' should have the id 50296"),
        ],
    )
    def test_ids_that_do_not_fit(self, copy, changes, fault):
        added = json.loads((copy / "added_tokens.json").read_text())
        replace(copy / "added_tokens.json", added | changes)
        with pytest.raises(ValueError, match=fault):
            FlashSlothProcessor.from_pretrained(copy)

    def test_another_tokenizer_or_a_damaged_one(self, copy):
        replace(copy / "vocab.json", {"a": 0})
        with pytest.raises(ValueError, match="not FlashSloth's"):
            FlashSlothProcessor.from_pretrained(copy)
        replace(copy / "vocab.json", b'{"a": ')
        with pytest.raises(ValueError, match=r"vocab.json .* damaged"):
            FlashSlothProcessor.from_pretrained(copy)
        (copy / "vocab.json").unlink()
        with pytest.raises(OSError, match=r"vocab\.json"):
            FlashSlothProcessor.from_pretrained(copy)


class TestBadCheckpoints:
    def test_missing_shard(self, copy):
        (copy / SHARD).unlink()
        with pytest.raises(FileNotFoundError, match=f"{SHARD}, which is not there"):
            load(copy)

    @pytest.mark.parametrize("kept", [0, 5, 1000, -100])
    def test_truncated_shard(self, copy, kept):
        replace(copy / SHARD, (copy / SHARD).read_bytes()[:kept])
        with pytest.raises(ValueError, match=f"{SHARD} is damaged or cut short"):
            load(copy)

    def test_wrong_shape(self, copy):
        tensors = load_file(copy / SHARD)
        tensors["model.up"] = tensors.pop("model.mm_projector.2.bias")
        tensors["lm_head.bias"] = torch.zeros(7)
        (copy / SHARD).unlink()
        save_file(tensors, copy / SHARD)
        index = json.loads((copy / INDEX).read_text())
        index["weight_map"]["model.up"] = index["weight_map"].pop("model.mm_projector.2.bias")
        replace(copy / INDEX, index)
        with pytest.raises(ValueError, match=r"bias is missing; model.up is not part.*\[7\].*asks for \[51200\]"):
            load(copy)

    def test_vision_tower_of_another_size(self, copy):
        replace(copy / "config.json", {name: value for name, value in CONFIG.items() if name != "vision_config"})
        with pytest.raises(ValueError, match=r"do not fit its config.json"):
            load(copy)

    def test_index_and_shards_contradict_each_other(self, copy):
        index = json.loads((copy / INDEX).read_text())
        more = index | {"weight_map": index["weight_map"] | {"model.ghost": SHARD}}
        replace(copy / INDEX, more)
        with pytest.raises(ValueError, match=r"names model.ghost, not to be found"):
            load(copy)
        del index["weight_map"]["lm_head.bias"]
        replace(copy / INDEX, index)
        with pytest.raises(ValueError, match=r"hold lm_head.bias, unknown to their index"):
            load(copy)
        replace(copy / INDEX, b"[]")
        with pytest.raises(ValueError, match="no index of shards"):
            load(copy)

    def test_tensor_in_two_shards(self, copy):
        twice = load_file(copy / "model-00001-of-00002.safetensors")
        twice["lm_head.bias"] = torch.zeros(51200)
        (copy / "model-00001-of-00002.safetensors").unlink()
        save_file(twice, copy / "model-00001-of-00002.safetensors")
        with pytest.raises(ValueError, match=r"lm_head.bias is in two files"):
            load(copy)

    def test_no_weights(self, copy):
        for file in copy.glob("model*"):
            file.unlink()
        with pytest.raises(FileNotFoundError, match="no weights"):
            load(copy)

    def test_plain_phi(self, tmp_path):
        config = PhiConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        PhiForCausalLM(config).save_pretrained(tmp_path)
        for loader in (FlashSlothForConditionalGeneration, AutoModelForImageTextToText):
            with pytest.raises(ValueError, match=r"no FlashSloth.*'phi'.*PhiForCausalLM.*flashsloth build"):
                loader.from_pretrained(tmp_path)

    def test_llava(self, tmp_path):
        write_json(tmp_path / "config.json", {"model_type": "llava", "architectures": ["LlavaForCausalLM"]})
        with pytest.raises(ValueError, match=r"no FlashSloth.*llava"):
            load(tmp_path)


class TestPickles:
    @pytest.fixture
    def pickled(self, copy):
        for file in copy.glob("model*"):
            file.unlink()
        torch.save(authors_weights(), copy / "pytorch_model.bin")
        return copy

    def test_refused_with_the_reason(self, pickled):
        with pytest.raises(ValueError, match=r"pickles.*can run any code.*use_safetensors=False"):
            load(pickled)

    def test_read_where_trusted(self, pickled):
        model, report = load(pickled, use_safetensors=False, output_loading_info=True)
        assert not any(report.values())
        assert torch.equal(model.lm_head.bias, authors_weights()["lm_head.bias"])

    def test_never_run(self, pickled):
        with pytest.raises(ValueError, match="loads weights only"):
            load(pickled, use_safetensors=False, weights_only=False)
        torch.save({name: print for name in SHAPES}, pickled / "pytorch_model.bin")
        with pytest.raises(ValueError, match="cannot be read as weights only"):
            load(pickled, use_safetensors=False)

    def test_refused_in_our_format_too(self, tmp_path):
        FlashSlothConfig().save_pretrained(tmp_path)
        torch.save({}, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="can run any code"):
            load(tmp_path)
