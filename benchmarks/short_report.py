"""The comparison in short, for somebody who chooses a model: one table by classes of size, and who is ahead in each."""

from .compare_rows import CLASSES, shown
from .report import markdown_table, with_spread
from .worker import OURS

SHORT = ["size", "model", "visual tokens", "time to first token", "decoding speed", "KV cache, MB",
         "weights, GB"]  # fmt: skip
AHEAD = ["size", "FlashSloth on", "time to first token", "decoding speed", "KV cache"]
COUNTS = ["size", "model", "visual tokens", "prompt", "TFLOP", "of which vision", "compression", "a token reads, GB",
          "KV cache, MB", "weights, GB"]  # fmt: skip


def cache_bytes(facts: dict) -> int:
    """Bytes of keys and values (or states) of the prompt, and of the patches that ours remembers with them."""
    return facts["kv_bytes"] + facts["memory_bytes"]


def in_classes(summaries: dict) -> list[tuple[str, str, dict]]:
    """Class, name and summary of the rows that are there, the quickest of a class first, by its clock or its work."""

    def cost(item: tuple[str, str, dict]) -> tuple[bool, float]:
        _, _, found = item
        measured = found.get("ttft_over_floor")
        return measured is None, found["facts"]["flops"]["total"] if measured is None else measured["median"]

    rows = []
    for billions, names in CLASSES.items():
        size = f"≤ {billions} B"
        there = [(size, name, summaries[name]) for name in names if "facts" in summaries.get(name, {})]
        rows += sorted(there, key=cost)
    return rows


def short_table(summaries: dict) -> str:
    """Times and speeds in multiples of the floor's, empty where they were not measured."""
    return markdown_table(SHORT, [
        [
            size, shown(name), str(found["facts"]["visual_tokens"]), with_spread(found.get("ttft_over_floor")),
            with_spread(found.get("decode_over_floor")), f"{cache_bytes(found['facts']) / 1e6:.1f}",
            f"{found['facts']['weight_bytes'] / 1e9:.2f}",
        ]
        for size, name, found in in_classes(summaries)
    ])  # fmt: skip


def counts_table(summaries: dict) -> str:
    """What needs no clock: tokens, operations of a prefill by stage, and bytes."""
    lines = []
    for size, name, found in in_classes(summaries):
        facts = found["facts"]
        flops = [f"{facts['flops'][part] / 1e12:.3f}" for part in ("total", "vision", "compression")]
        reads, kept = facts["decoding_bytes"] + facts["kv_bytes"], cache_bytes(facts)
        tokens = [str(facts[count]) for count in ("visual_tokens", "prompt_tokens")]
        sizes = [f"{reads / 1e9:.3f}", f"{kept / 1e6:.1f}", f"{facts['weight_bytes'] / 1e9:.2f}"]
        lines.append([size, shown(name), *tokens, *flops, *sizes])
    return markdown_table(COUNTS, lines)


def ahead_table(summaries: dict) -> str:
    """
    Each preset over the best rival of its class, each column's own best: below 1 is ahead in time and cache, above 1 in
    speed. Only of what was measured, and empty without that.
    """
    lines = []
    for billions, names in CLASSES.items():
        size = f"≤ {billions} B"
        rows = [(name, of) for _, name, of in in_classes(summaries) if name in names and "ttft" in of]
        rivals = [of for name, of in rows if not name.startswith(OURS)]
        if not rivals:
            continue
        ttft = min(of["ttft_over_floor"]["median"] for of in rivals)
        speed = max(of["decode_over_floor"]["median"] for of in rivals)
        cache = min(cache_bytes(of["facts"]) for of in rivals)
        for name, of in rows:
            if name.startswith(OURS):
                ratios = (of["ttft_over_floor"]["median"] / ttft, of["decode_over_floor"]["median"] / speed,
                          cache_bytes(of["facts"]) / cache)  # fmt: skip
                lines.append([size, shown(name), *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown_table(AHEAD, lines) if lines else ""
