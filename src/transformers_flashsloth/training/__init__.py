"""Recipes: LoRA fine-tuning and the two stages of the release, on TRL."""
