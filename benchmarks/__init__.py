"""
What FlashSloth costs, beside its floor and its rivals; see README.md.

`python -m benchmarks.compare` is the comparison; the other commands measure one thing each.
"""

from .torchvision_stub import let_torchvision_import

let_torchvision_import()
