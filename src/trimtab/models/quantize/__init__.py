"""Weights of fewer bits for frozen models on processors: `layers` compute with them, `network` puts them in place."""
