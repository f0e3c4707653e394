"""Which models are compared, in which rounds, and in which classes of size they compete."""

from .worker import FLOOR_HD, OURS, OURS_9, OURS_HD, OURS_HD_9

# Rows that are sampled in one round, each between two samples of the floor.
GROUPS = {
    OURS: [OURS],
    OURS_HD: [FLOOR_HD, OURS_HD],
    OURS_9: [OURS_9, OURS_HD_9],
    "ours-gemma3-270m": ["ours-gemma3-270m"],
    "ours-lfm2-350m": ["ours-lfm2-350m", "ours-lfm2-350m-hd"],
    "ours-qwen3-0.6b": ["ours-qwen3-0.6b", "ours-qwen3-0.6b-hd"],
    "ours-lfm2-700m": ["ours-lfm2-700m", "ours-lfm2-700m-hd"],
    "ours-qwen3.5-0.8b": ["ours-qwen3.5-0.8b"],
    "ours-gemma3-1b": ["ours-gemma3-1b"],
    "ours-lfm2-1.2b": ["ours-lfm2-1.2b"],
    "ours-qwen3-1.7b": ["ours-qwen3-1.7b"],
    "ours-smollm2-1.7b": ["ours-smollm2-1.7b"],
    "ours-qwen3.5-2b": ["ours-qwen3.5-2b"],
    "ours-smollm3-3b": ["ours-smollm3-3b"],
    "lfm2.5-vl-450m": ["lfm2.5-vl-450m"],
    "lfm2.5-vl-450m-unsplit": ["lfm2.5-vl-450m-unsplit"],
    "smolvlm2-500m": ["smolvlm2-500m"],
    "qwen3.5-0.8b": ["qwen3.5-0.8b"],
    "minicpm-v-4.6": ["minicpm-v-4.6"],
    "fastvlm-1.5b": ["fastvlm-1.5b"],
    "lfm2.5-vl-1.6b": ["lfm2.5-vl-1.6b"],
    "lfm2.5-vl-1.6b-unsplit": ["lfm2.5-vl-1.6b-unsplit"],
    "qwen3.5-2b": ["qwen3.5-2b"],
    "qwen3-vl-2b": ["qwen3-vl-2b"],
    "gemma-4-e2b": ["gemma-4-e2b"],
    "smolvlm2-2.2b": ["smolvlm2-2.2b"],
}
# By parameters, vision included, in billions at most: rows of the short table, where ours and rivals compete. Of Gemma
# 4 E2B those tables are not counted that a token has one row of for every layer, as in its name.
CLASSES = {
    0.6: ["ours-gemma3-270m", "ours-lfm2-350m", "ours-lfm2-350m-hd", "lfm2.5-vl-450m", "lfm2.5-vl-450m-unsplit",
          "smolvlm2-500m"],
    1.5: ["ours-qwen3-0.6b", "ours-lfm2-700m", "ours-lfm2-700m-hd", "ours-qwen3.5-0.8b", "ours-gemma3-1b",
          "qwen3.5-0.8b", "minicpm-v-4.6"],
    3.2: ["ours-lfm2-1.2b", "ours-qwen3-1.7b", "ours-qwen3.5-2b", OURS, OURS_HD, "lfm2.5-vl-1.6b",
          "lfm2.5-vl-1.6b-unsplit", "fastvlm-1.5b", "qwen3.5-2b", "qwen3-vl-2b", "gemma-4-e2b", "smolvlm2-2.2b"],
}  # fmt: skip


def shown(name: str) -> str:
    """How a row is called in tables: `ours` is FlashSloth."""
    return name.replace(OURS, "FlashSloth", 1) if name.startswith(OURS) else name
