"""Checkpoints on the Hub: uploads and model cards."""
