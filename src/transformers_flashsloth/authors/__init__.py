"""The checkpoints that FlashSloth's authors released."""
