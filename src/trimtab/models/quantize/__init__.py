"""Weights of fewer bits for frozen models on processors: `layers` compute with them, `network` puts them in place."""

KINDS = ("int8", "float16")
"""What a model may be quantised to; here, so that flags know it without torch."""
