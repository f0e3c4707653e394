"""The same FlashSloth on many decoders, and by name and reason not on others."""

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from packaging.version import Version
from transformers import AutoModelForCausalLM, set_seed

from tests.model.decoder_families import FAMILIES, REFUSED, config_of
from tests.tiny_backbones import TEXT, build, generate, inputs_of, row_of, small
from transformers_flashsloth import FlashSlothConfig, FlashSlothForConditionalGeneration
from transformers_flashsloth.model.decoders import layers_of

# Some of every kind in the default suite, all others with `-m slow`.
QUICK = (
    "cohere",  # scales logits, parallel attention and MLP
    "gemma2",  # soft caps, sandwich norms
    "gemma3_text",
    "gpt2",  # learned positions, layers named `h`, embeddings named `wte`
    "gpt_neox",  # embeddings named `embed_in`
    "granite",  # scales embeddings, residuals and logits
    "lfm2",
    "llama",
    "mistral",  # a sliding window in every layer
    "mixtral",
    "olmo2",  # norms behind attention and MLP
    "opt",  # layers named `decoder.layers`
    "phi",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5_text",
    "smollm3",  # layers without positions
    "stablelm",
)
WORKING = [
    family if family in QUICK else pytest.param(family, marks=pytest.mark.slow)
    for family in FAMILIES
    if family not in REFUSED
]
# What enters the first layer there is not what was given: all embeddings are normalised.
NORMALISES = ("nanochat",)
# Modules there have names that linears have elsewhere, so that adapters have to be told their targets.
NO_DEFAULT_TARGETS = ("moshi", "zaya")
# In transformers 5.19.
NOT_YET = {
    "llama4_text": "it cannot make masks for static caches",
    "moshi": "it does not hand keyword arguments on to its layers",
}


@pytest.fixture(scope="module", params=WORKING)
def text_config(request):
    if request.param in NOT_YET and Version(transformers.__version__) < Version("5.23"):
        pytest.skip(NOT_YET[request.param])
    return config_of(request.param)


@pytest.fixture(scope="module")
def model(text_config):
    return build(text_config)


@pytest.fixture(scope="module")
def batch(model):
    return inputs_of(model, [20, 21, 22], [25] * 6)


def test_text_alone_gives_the_decoders_own_logits(model, text_config):
    language_model = AutoModelForCausalLM.from_config(text_config).eval()
    decoder = next(m for m in language_model.modules() if type(m) is type(model.model.language_model))
    decoder.load_state_dict(model.model.language_model.state_dict())
    language_model.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    ids = torch.randint(11, 60, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, language_model(input_ids=ids).logits)


def test_rows_of_a_ragged_batch_answer_as_alone(model, batch):
    together = generate(model, batch)
    for index in range(2):
        assert torch.equal(together[index : index + 1], generate(model, row_of(batch, index)))
    assert torch.equal(together, generate(model, batch, cache_implementation="static", disable_compile=True))


def test_embq_reads_the_image_inside_the_decoder(model, batch):
    row = row_of(batch, 0)
    entering = []
    hook = model.model.embq.register_forward_hook(lambda module, args, output: entering.append((args[0], output)))
    with torch.no_grad():
        hidden = model(**row, output_hidden_states=True).hidden_states
    hook.remove()
    ((before, after),) = entering
    torch.testing.assert_close(before, hidden[1])
    is_query = (row["input_ids"] == model.config.query_token_id)[0]
    assert (before != after).any(-1)[0].tolist() == is_query.tolist()


def test_visual_tokens_enter_the_first_layer_as_projected(model, batch):
    """Apart from what the decoder adds, such as positions, which is the same for two images."""
    if model.config.text_config.model_type in NORMALISES:
        pytest.skip("normalises all embeddings")
    row = row_of(batch, 0)
    entering, projected = [], []
    layer = layers_of(model.model.language_model)[0]
    hook = layer.register_forward_pre_hook(lambda module, args: entering.append(args[0].clone()))
    with torch.no_grad():
        for pixel_values in (row["pixel_values"], -row["pixel_values"]):
            projected.append(model(**row | {"pixel_values": pixel_values}).image_hidden_states[0])
    hook.remove()
    is_image = (row["input_ids"] == model.config.image_token_id)[0]
    entered = [hidden[0, is_image] for hidden in entering]
    torch.testing.assert_close(entered[0] - entered[1], projected[0] - projected[1], rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient(text_config, batch):
    gradients = []
    for checkpointed in (False, True):
        model = build(text_config).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        set_seed(0)
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss})
    assert {"model.embq.up_proj.weight", "model.query_tokens.weight"} <= gradients[0].keys()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_lora_step_lowers_the_loss(text_config, batch):
    peft = pytest.importorskip("peft")
    targets = "all-linear" if text_config.model_type in NO_DEFAULT_TARGETS else None
    model = peft.get_peft_model(build(text_config), peft.LoraConfig(r=4, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**batch, labels=batch["input_ids"]).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_saved_and_loaded(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, report = FlashSlothForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("bart", {"encoder_layers": 1, "decoder_layers": 1}, "'bart': it is an encoder-decoder"),
        ("mamba", {}, "'mamba': its config does not say `num_attention_heads`"),
        ("bamba", {"mamba_n_heads": 4}, "'bamba': it has no attention layer"),
        ("bert", {}, "'bert': BertModel has no list of its 3 layers"),
        ("falcon", {}, "'falcon': it does not hand keyword arguments on"),
        ("opt", {"word_embed_proj_dim": 16, "ffn_dim": 32}, "'opt': its embeddings are 16 wide, but its layers 32"),
        ("modernbert-decoder", {}, "'modernbert-decoder': its head has layers"),
        ("gemma3", {}, "'gemma3' is a model of several parts"),
    ],
)
def test_what_cannot_work_is_refused_by_name_and_reason(model_type, changes, reason):
    with pytest.raises((ValueError, StrictDataclassError), match=reason) as refusal:
        build(small(model_type, TEXT, **changes))
    assert not isinstance(refusal.value, AttributeError)


def test_head_and_tying_follow_the_decoder():
    def choices(model_type, **changes):
        config = FlashSlothConfig(
            text_config=small(model_type, TEXT | {"vocab_size": 51200, "num_hidden_layers": 9}, **changes)
        )
        return config.lm_head_bias, config.tie_word_embeddings

    assert choices("phi") == (True, False)
    assert choices("llama") == (False, False)
    assert choices("llama", tie_word_embeddings=True) == (False, True)
    assert choices("gemma2") == (False, True)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(REFUSED.keys() & set(FAMILIES)))
def test_every_other_family_is_refused_by_name_and_reason(family):
    with pytest.raises((ValueError, StrictDataclassError), match=f"'{family}'.* {REFUSED[family]}"):
        build(config_of(family))
