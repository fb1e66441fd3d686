"""Other people's tools: each file imports the one that it is for, and is imported only by whoever asks for it.

`fairkern.integrations.lightning` (a callback), `fairkern.integrations.timm` (its text format of pruned models),
`fairkern.integrations.torch_pruning` (scores as an importance). `fairkern.integrations.optimizers` needs torch alone.
"""
