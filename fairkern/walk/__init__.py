"""A model walked block by block: one segment's weights and one boundary's activations at a time."""
