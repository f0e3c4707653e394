"""A new model out of a decoder and a vision tower."""
