import torch

from transformers_flashsloth.model.spatial_attention_pooling import SpatialAttentionPooling


def pool_with_loops(pooling: SpatialAttentionPooling, view: torch.Tensor) -> torch.Tensor:
    """What the paper says, one window at a time: `(P, Dv)` to `(T, Dv)`."""
    grid = int(len(view) ** 0.5)
    tokens = []
    for top in range(0, grid, pooling.window[0]):
        for left in range(0, grid, pooling.window[0]):
            rows = range(top, top + pooling.window[0])
            columns = range(left, left + pooling.window[0])
            window = torch.stack([view[row * grid + column] for row in rows for column in columns])
            scores = pooling.score_proj(torch.relu(pooling.hidden_proj(window))).squeeze(-1)
            tokens.append(sum(weight * patch for weight, patch in zip(scores.softmax(0), window, strict=True)))
    return torch.stack(tokens)


def test_equals_loops():
    for window, grid in ((3, 9), (2, 8), (1, 4), (4, 4)):
        pooling = SpatialAttentionPooling(16, (window, window), (grid, grid)).eval()
        views = torch.randn(2, grid * grid, 16)
        expected = torch.stack([pool_with_loops(pooling, view) for view in views])
        torch.testing.assert_close(pooling(views), expected)


def test_weights_sum_to_one_in_every_window():
    weights = SpatialAttentionPooling(16, (3, 3), (9, 9)).weights(torch.randn(2, 81, 16) * 50)
    assert weights.shape == (2, 3, 3, 3, 3)
    torch.testing.assert_close(weights.sum(dim=(2, 4)), torch.ones(2, 3, 3))


def test_finite_in_half_precision_and_scores_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        pooling = SpatialAttentionPooling(16, (3, 3), (9, 9)).to(dtype)
        patches = torch.randn(1, 81, 16, dtype=dtype) * 1000
        assert pooling.weights(patches).dtype == torch.float32
        assert pooling(patches).dtype == dtype
        assert pooling(patches).isfinite().all()


def test_gradients_reach_scores_and_patches():
    pooling = SpatialAttentionPooling(16, (3, 3), (9, 9))
    patches = torch.randn(1, 81, 16, requires_grad=True)
    pooling(patches).square().sum().backward()
    assert patches.grad.abs().sum() > 0
    # A softmax does not see a constant added to all scores, so the last bias has none.
    assert all(p.grad.abs().sum() > 0 for name, p in pooling.named_parameters() if name != "score_proj.bias")
