"""Many questions about some images: nothing is computed twice that two of them have in common."""
