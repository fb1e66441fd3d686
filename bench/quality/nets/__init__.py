"""Small nets of every family, in plain PyTorch: they know nothing of pruning."""
