import copy
import pickle

import pytest
import torch
from transformers import AutoModel, LlamaConfig, PhiConfig, Qwen3Config

from transformers_flashsloth.model.decoder_seam import open_seam

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("config_class", [PhiConfig, LlamaConfig, Qwen3Config])
def test_the_layer_reads_what_embq_returns(config_class):
    decoder = AutoModel.from_config(config_class(**SIZES)).eval()
    embeds = torch.randn(2, 5, 32)
    plain = decoder(inputs_embeds=embeds)
    open_seam(decoder.layers)
    entering = []

    def embq(hidden_states):
        entering.append(hidden_states)
        return hidden_states * 2

    torch.testing.assert_close(decoder(inputs_embeds=embeds).last_hidden_state, plain.last_hidden_state)
    changed = decoder(inputs_embeds=embeds, embq={1: embq}, output_hidden_states=True)
    torch.testing.assert_close(entering[0], changed.hidden_states[1])
    assert len(entering) == 1
    assert not torch.allclose(changed.last_hidden_state, plain.last_hidden_state)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_pass_under_checkpointing(use_reentrant):
    decoder = AutoModel.from_config(PhiConfig(**SIZES))
    open_seam(decoder.layers)
    scale = torch.nn.Parameter(torch.ones(()))
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            decoder.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        embeds = torch.ones(1, 4, 32, requires_grad=True)
        scale.grad = None
        decoder.train()(inputs_embeds=embeds, embq={1: lambda hidden: hidden * scale}).last_hidden_state[
            0, 0, 0
        ].backward()
        gradients.append((scale.grad.clone(), embeds.grad.clone()))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_layers_hear_nothing_of_embq_and_keep_their_class_names():
    decoder = AutoModel.from_config(PhiConfig(**SIZES)).eval()
    before = type(decoder.layers[0])
    open_seam(decoder.layers)
    heard = []
    for layer in decoder.layers:
        assert isinstance(layer, before) and type(layer).__name__ == before.__name__
        layer.register_forward_pre_hook(lambda _, args, kwargs: heard.append("embq" in kwargs), with_kwargs=True)
    decoder(inputs_embeds=torch.ones(1, 4, 32), embq={1: lambda hidden: hidden})
    assert heard == [False] * 3


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda decoder: pickle.loads(pickle.dumps(decoder))])
def test_copies_have_a_seam_too(copied_by):
    decoder = AutoModel.from_config(PhiConfig(**SIZES)).eval()
    open_seam(decoder.layers)
    inputs = {"inputs_embeds": torch.randn(1, 4, 32), "embq": {1: lambda hidden: hidden * 2}}
    copied = copied_by(decoder)
    torch.testing.assert_close(copied(**inputs).last_hidden_state, decoder(**inputs).last_hidden_state)
    assert copied.layers[1] is not decoder.layers[1]
