"""A page to talk to a model on, as a command and as a Space."""
