"""How the small default checkpoint is made: data, tokenizer, training and evaluation.

`python -m conversion.default_model.train` makes it, `python -m conversion.default_model.evaluate` measures it.
"""
