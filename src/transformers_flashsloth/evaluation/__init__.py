"""FlashSloth measured: a plug-in of lmms-eval, and `flashsloth eval`. Nothing here imports lmms-eval until asked."""
