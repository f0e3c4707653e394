import torch

from tests.golden_model import IMAGE, QUERY, USER_PREFIX, load_case, pad, tiny_config, tiny_model
from transformers_flashsloth.model.embedded_query import CrossAttention, EmbeddedQuery, QueryTokens
from transformers_flashsloth.model.question_spans import find_query_spans

PATCHES, DV, D = 12, 16, 8


def attend_with_loops(attention: CrossAttention, queries, keys, values) -> torch.Tensor:
    """Textbook attention, one query and one head at a time."""
    queries, keys, values = attention.q_proj(queries), attention.k_proj(keys), attention.v_proj(values)
    head, value_head = queries.shape[-1] // attention.num_heads, values.shape[-1] // attention.num_heads
    found = torch.zeros(len(queries), values.shape[-1])
    for i, query in enumerate(queries):
        for h in range(attention.num_heads):
            part, value_part = slice(h * head, (h + 1) * head), slice(h * value_head, (h + 1) * value_head)
            weights = torch.softmax(keys[:, part] @ query[part] / head**0.5, dim=0)
            found[i, value_part] = weights @ values[:, value_part]
    return found


def embq_with_loops(embq: EmbeddedQuery, hidden, patches_of_images, runs) -> torch.Tensor:
    """`runs`: for each query run its row, its first position, its question's positions and the images it sees."""
    hidden = hidden.clone()
    source = hidden.clone()
    for row, start, question, images in runs:
        if not images:
            continue
        queries = embq.query_norm(embq.text_down_proj(source[row, start : start + 9]))
        text = embq.question_norm(embq.text_down_proj(source[row, question]))
        asked = attend_with_loops(embq.question_attention, queries, text, text)
        patches = torch.cat([patches_of_images[image] for image in images])
        keys = embq.image_norm(embq.image_down_proj(patches))
        hidden[row, start : start + 9] += embq.up_proj(attend_with_loops(embq.image_attention, asked, keys, patches))
    return hidden


def batch():
    """Three left-padded rows: two turns with an image each; two images in one turn; text only."""
    image, run = [IMAGE] * 4 + [198], [QUERY] * 9
    rows = [
        [1, *image, 10, 11, *run, 2, 3, *USER_PREFIX, *image, 20, *run, 2],
        [1, *image, *image, 30, 31, 32, *run, 2],
        [1, 40, *run, 2],
    ]
    ids = pad(rows, "left")
    offsets = [ids.shape[1] - len(row) for row in rows]
    runs = [
        (0, offsets[0] + 8, [offsets[0] + 6, offsets[0] + 7], [0]),
        (0, offsets[0] + 28, [offsets[0] + 27], [0, 1]),
        (1, offsets[1] + 14, [offsets[1] + i for i in (11, 12, 13)], [2, 3]),
        (2, offsets[2] + 2, [offsets[2] + 1], []),
    ]
    spans = find_query_spans(ids, tiny_config(), max_runs=3, num_images=4, tokens_per_image=4)
    return ids, spans, runs


def test_equals_loops_on_a_ragged_batch():
    torch.manual_seed(0)
    ids, spans, runs = batch()
    embq = EmbeddedQuery(D, DV, hidden_size=8, num_heads=2)
    hidden, patches = torch.randn(*ids.shape, D), torch.randn(4, PATCHES, DV)
    found = embq(hidden, patches, spans)
    torch.testing.assert_close(found, embq_with_loops(embq, hidden, patches, runs))
    touched = ((found - hidden).abs().amax(-1) > 0).nonzero().tolist()
    assert touched == [[row, start + q] for row, start, _, images in runs if images for q in range(9)]


def test_equals_the_release():
    case, model = load_case("sd_single"), tiny_model()
    ids = case.inputs["input_ids"]
    start = ids[0].tolist().index(QUERY)
    length = case.golden["embq_in_text"].shape[1]
    hidden = torch.zeros(1, ids.shape[1], 80)
    hidden[0, start : start + 9] = case.golden["embq_in_queries"][0]
    hidden[0, start - length : start] = case.golden["embq_in_text"][0]
    spans = find_query_spans(ids, model.config, max_runs=1, num_images=1, tokens_per_image=9)
    with torch.no_grad():
        patches = model.get_image_features(case.inputs["pixel_values"]).last_hidden_state
        found = model.model.embq(hidden, patches, spans)
    torch.testing.assert_close(found[0, start : start + 9], case.golden["embq_out"][0], rtol=1e-4, atol=1e-5)


def test_large_scores_and_empty_questions_stay_finite():
    ids = torch.tensor([[1, *[IMAGE] * 4, 198, *[QUERY] * 9]])
    spans = find_query_spans(ids, tiny_config(), max_runs=1, num_images=1, tokens_per_image=4)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        embq = EmbeddedQuery(D, DV, hidden_size=8, num_heads=2).to(dtype)
        hidden = (torch.randn(*ids.shape, D) * 1e3).to(dtype)
        found = embq(hidden, (torch.randn(1, PATCHES, DV) * 1e3).to(dtype), spans)
        assert found.dtype == dtype
        assert found.isfinite().all()


def test_gradients_reach_every_parameter_and_both_inputs():
    ids, spans, _ = batch()
    embq = EmbeddedQuery(D, DV, hidden_size=8, num_heads=2)
    hidden = torch.randn(*ids.shape, D, requires_grad=True)
    patches = torch.randn(4, PATCHES, DV, requires_grad=True)
    embq(hidden, patches, spans).square().sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert patches.grad.abs().amax(dim=(1, 2)).min() > 0
    # Softmax does not see a constant added to all keys, nor a norm's shift that only reaches keys.
    blind = {"question_attention.k_proj.bias", "image_attention.k_proj.bias", "image_norm.bias"}
    for name, parameter in embq.named_parameters():
        assert parameter.grad is not None
        assert name in blind or parameter.grad.abs().sum() > 0, name


def test_query_tokens_count_from_each_run():
    queries = QueryTokens(3, 2)
    torch.nn.init.uniform_(queries.weight)
    is_query = torch.tensor([[False, True, True, True, False, True, True, True]])
    found = queries(is_query, base=torch.ones(2))[is_query]
    torch.testing.assert_close(found, (queries.weight + 1).repeat(2, 1))
