"""torch.compile: whole graphs, no recompilation from step to step, and the numbers of eager mode."""

import json

import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from transformers import AutoProcessor, CompileConfig, DynamicCache, StaticCache

from conversion.default_model.train import DEFAULT_CHECKPOINT
from tests.small_model import SECOND_TURN, inputs_of, small_model
from transformers_flashsloth import FlashSlothForConditionalGeneration

OPTIONS = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model() -> FlashSlothForConditionalGeneration:
    return small_model()


def new_cache(model, kind: str) -> DynamicCache | StaticCache:
    return StaticCache(config=model.config, max_cache_len=64) if kind == "static" else DynamicCache(config=model.config)


def compiled(model, **options):
    return torch.compile(model.forward, **{"fullgraph": True, "backend": "eager"} | options)


def on_this_device(backend: str = "eager") -> CompileConfig:
    """Upstream compiles decoding on accelerators; this is its own switch for tests on other devices."""
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    return config


def graphs() -> int:
    """How many graphs were compiled, none of them broken."""
    assert not counters["graph_break"], dict(counters["graph_break"])
    return counters["stats"]["unique_graphs"]


def decode(forward, logits: torch.Tensor, cache, steps: int = 4) -> torch.Tensor:
    """Greedy steps after a prefill's `logits` `(B, L, vocabulary)`; all their logits, `(B, steps, vocabulary)`."""
    found = []
    for _ in range(steps):
        logits = forward(input_ids=logits[:, -1:].argmax(-1), past_key_values=cache).logits
        found.append(logits)
    return torch.cat(found, dim=1)


@torch.no_grad()
def test_decoding_with_a_static_cache_is_one_graph(model):
    inputs = inputs_of([0])
    caches = [new_cache(model, "static") for _ in range(2)]
    logits = [model(**inputs, past_key_values=cache).logits for cache in caches]
    expected = decode(model, logits[0], caches[0])
    torch.testing.assert_close(decode(compiled(model), logits[1], caches[1]), expected)
    assert graphs() == 1


@pytest.mark.parametrize("rows", [pytest.param([2], marks=pytest.mark.slow), [0, 1, 2]])
def test_generate_compiles_its_decoding_once(model, rows):
    inputs = inputs_of(rows)
    expected = model.generate(**inputs, **OPTIONS)
    found = model.generate(**inputs, **OPTIONS, cache_implementation="static", compile_config=on_this_device())
    assert found.tolist() == expected.tolist()
    assert graphs() == 1


def test_a_compiled_model_encodes_its_images_compiled_too(model):
    inputs = inputs_of([0])
    expected = model.generate(**inputs, **OPTIONS)
    targets = []

    def backend(graph, _):
        targets.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = small_model()
    compiled.load_state_dict(model.state_dict())
    compiled.compile(backend=backend)
    assert compiled.generate(**inputs, **OPTIONS).tolist() == expected.tolist()
    convolutions = [graph for graph in targets if any("conv" in target for target in graph)]
    assert len(convolutions) == 1
    torch._dynamo.reset()
    logits = compiled(**inputs).logits
    torch.testing.assert_close(logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert not counters["graph_break"]


def test_a_second_turn_decodes_with_the_same_graph(model):
    inputs = inputs_of([0])
    cache, recomputed = new_cache(model, "static"), new_cache(model, "dynamic")
    options = OPTIONS | {"compile_config": on_this_device()}
    first = model.generate(**inputs, **options, past_key_values=cache)
    turn = torch.cat([first, torch.tensor([SECOND_TURN])], dim=1)
    found = model.generate(input_ids=turn, **options, past_key_values=cache)
    expected = model.generate(
        input_ids=turn, pixel_values=inputs["pixel_values"], **OPTIONS, past_key_values=recomputed
    )
    assert found.tolist() == expected.tolist()
    assert graphs() == 1


@torch.no_grad()
@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        pytest.param([2], "dynamic", marks=pytest.mark.slow),
        pytest.param([0], "static", marks=pytest.mark.slow),
        ([1], "dynamic"),
        pytest.param([0, 1, 2], "dynamic", marks=pytest.mark.slow),
    ],
)
def test_a_prefill_is_one_graph(model, rows, kind):
    inputs = inputs_of(rows)
    caches = [new_cache(model, kind) for _ in range(2)]
    expected = model(**inputs, past_key_values=caches[0])
    found = compiled(model)(**inputs, past_key_values=caches[1])
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert graphs() == 1

    # Both caches go on alike, as both remember the prompt.
    turn = torch.tensor([SECOND_TURN] * len(rows))
    expected, found = (model(input_ids=turn, past_key_values=cache).logits for cache in caches)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected, found = (getattr(cache, "prompt_memory", None) for cache in caches)
    assert (found is None) == (expected is None) == (rows == [2])
    if found is not None:
        assert found.input_ids.tolist() == expected.input_ids.tolist()
        torch.testing.assert_close(found.image_features, expected.image_features)


@torch.no_grad()
def test_a_graph_serves_every_prompt_of_its_shape(model):
    forward = compiled(model)
    inputs = inputs_of([0, 1, 2])
    for order in ([0, 1, 2], [2, 1, 0]):
        shuffled = inputs | {name: inputs[name][order] for name in ("input_ids", "attention_mask")}
        expected = model(**shuffled, past_key_values=new_cache(model, "static")).logits
        found = forward(**shuffled, past_key_values=new_cache(model, "static")).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert graphs() == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", [pytest.param("static", marks=pytest.mark.slow), "dynamic"])
def test_a_later_turn_reads_the_earlier_images(model, kind):
    def second_turn(forward) -> torch.Tensor:
        cache = new_cache(model, kind)
        decode(model, model(**inputs_of([0]), past_key_values=cache).logits, cache, steps=1)
        return forward(input_ids=torch.tensor([SECOND_TURN]), past_key_values=cache).logits

    # What is cached decides on shapes, so this turn is no whole graph.
    expected = second_turn(model)
    torch.testing.assert_close(second_turn(compiled(model, fullgraph=False)), expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="recall_untraced"):
        second_turn(compiled(model))


def default_model_inputs() -> tuple[dict[str, torch.Tensor], list[str], AutoProcessor]:
    """The first example of the default model: its inputs, its answer and the processor."""
    examples = DEFAULT_CHECKPOINT.with_name("examples")
    entry = json.loads((examples / "examples.json").read_text())[0]
    processor = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)
    image = {"type": "image", "image": Image.open(examples / entry["image"])}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": entry["question"]}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return inputs, entry["answer"], processor


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_default_model_answers_compiled(backend):
    model = FlashSlothForConditionalGeneration.from_pretrained(DEFAULT_CHECKPOINT).eval()
    inputs, answer, processor = default_model_inputs()
    options = {"do_sample": False, "cache_implementation": "static", "compile_config": on_this_device(backend)}
    tokens = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(tokens, skip_special_tokens=True).strip() == answer
    assert graphs() == 1


@torch.no_grad()
@pytest.mark.slow
def test_inductor_compiles_prefill_and_decoding(model):
    inputs = inputs_of([0])
    caches = [new_cache(model, "static") for _ in range(2)]
    forward = compiled(model, backend="inductor")
    expected = model(**inputs, past_key_values=caches[0]).logits
    found = forward(**inputs, past_key_values=caches[1]).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    expected = decode(model, expected, caches[0])
    torch.testing.assert_close(decode(forward, found, caches[1]), expected, rtol=1e-3, atol=1e-3)
    assert graphs() == 2
