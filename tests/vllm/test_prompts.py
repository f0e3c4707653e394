"""What the plug-in does to prompts and images, without an engine."""

from importlib.util import find_spec

import pytest
import torch

from tests.small_model import IMAGE, QUERY, small_config

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")


def test_queries_are_expanded():
    from vllm.exceptions import VLLMValidationError

    from transformers_flashsloth.vllm.prompts import expand_queries

    config = small_config()
    assert expand_queries([9, QUERY, 7, QUERY, 8], config) == [9, *[QUERY] * 3, 7, *[QUERY] * 3, 8]
    assert expand_queries([9, *[QUERY] * 3, 7], config) == [9, *[QUERY] * 3, 7]
    assert expand_queries([9, 8], config) == [9, 8]
    assert expand_queries([9, QUERY, 8], small_config(num_query_tokens=0)) == [9, 8]
    with pytest.raises(VLLMValidationError, match=r"a query run of 2 tokens \(id 2\) where 3, or one"):
        expand_queries([9, QUERY, QUERY, 8], config)


def test_an_image_that_is_not_there_is_refused():
    from vllm.exceptions import VLLMValidationError

    from transformers_flashsloth.vllm.prompts import check_images

    check_images([9, IMAGE], True, small_config())
    check_images([9, 8], False, small_config())
    with pytest.raises(VLLMValidationError, match="1 image placeholders and no image: pass the images along"):
        check_images([9, IMAGE], False, small_config())


@pytest.mark.parametrize("choices", [{}, {"pooling_window": 2}, {"image_size": [16, 24], "pooling_window": [2, 3]}])
def test_packed_images_come_out_as_they_were(choices):
    from transformers_flashsloth.vllm.packing import pack, unpack

    config = small_config(**choices)
    rows, columns = config.patch_grid
    for views in (1, 5):
        tokens = torch.randn(2, views * config.tokens_per_view, config.text_config.hidden_size)
        patches = torch.randn(2, views * rows * columns, config.vision_config.hidden_size)
        packed = pack(tokens, patches, config)
        assert packed.shape[1] == tokens.shape[1]
        for whole, part in zip(unpack(packed, config), (tokens, patches), strict=True):
            assert torch.equal(whole, part)


def test_registering_twice_is_once():
    from vllm import ModelRegistry

    from transformers_flashsloth.vllm.plugin import ARCHITECTURE, register

    register()
    register()
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()


def test_a_prompt_in_pieces_is_refused():
    from types import SimpleNamespace

    from transformers_flashsloth.vllm.step import Step

    config = small_config()
    engine = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={}))
    step = Step(config, {1: torch.nn.Identity()}, "step", engine)
    step.take(torch.tensor([20, QUERY, QUERY, QUERY, 7]), [])
    with pytest.raises(RuntimeError, match=r"came in pieces, .* chunked prefill and prefix caching must be off"):
        step.place(torch.arange(6, 11))
    step.take(torch.tensor([20, 21, 22]), [])
    step.place(torch.tensor([5, 9, 30]))  # three decoding steps
    assert not step.prompts


def test_compiled_graphs_are_split_at_embq():
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode

    from transformers_flashsloth.vllm.config import split_graphs_at_embq

    op = "vllm::flashsloth_embq"
    for given in ({}, {"splitting_ops": ["vllm::unified_attention_with_output"]}):
        compilation = CompilationConfig(mode=CompilationMode.VLLM_COMPILE, cudagraph_mode=CUDAGraphMode.FULL, **given)
        split_graphs_at_embq(compilation)
        compilation.set_splitting_ops_for_v1(all2all_backend="")
        assert compilation.splitting_ops.count(op) == 1
        assert compilation.cudagraph_mode == CUDAGraphMode.FULL_AND_PIECEWISE
    with pytest.raises(ValueError, match="cannot run in one whole graph"):
        split_graphs_at_embq(CompilationConfig(mode=CompilationMode.VLLM_COMPILE, splitting_ops=[]))


def test_requests_without_an_adapter_stay_without():
    """Where every slot is taken, the last of them would serve the index -1."""
    from types import SimpleNamespace

    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    from transformers_flashsloth.vllm.adapters import keep_rows_without_adapters

    keep_rows_without_adapters()
    keep_rows_without_adapters()  # once is enough
    wrapper = PunicaWrapperCPU(16, 4, "cpu")
    rows = [1, 0, 2, 0]
    for is_prefill in (True, False):
        wrapper.update_metadata(
            SimpleNamespace(index_mapping=rows, prompt_mapping=rows, is_prefill=is_prefill), [1, 2], 2, 100
        )
        shrink, expand = torch.randn(2, 1, 3, 5), torch.randn(2, 1, 4, 3)
        inputs, before = torch.randn(4, 5), torch.randn(4, 4)
        after = before.clone()
        wrapper.add_lora_linear(after, inputs, (shrink,), (expand,), 1.0, (4,))
        added = [expand[slot, 0] @ shrink[slot, 0] @ inputs[row] for row, slot in ((0, 0), (2, 1))]
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]] + torch.stack(added))
        assert torch.equal(after[[1, 3]], before[[1, 3]])
