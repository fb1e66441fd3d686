"""The rows of the comparison, and the tools with the versions that are tried."""

from __future__ import annotations

TOOLS = {  # module here: its name on the page, and what is installed to try it (also what it imports and does not name)
    "ours": ("fairkern", ()),
    "torch_pruning": ("torch-pruning 1.6.1", ("torch-pruning==1.6.1",)),
    "modelopt": ("ModelOpt 0.47", ("nvidia-modelopt==0.47.0", "torchprofile==0.0.4", "requests", "huggingface-hub")),
    "nncf": ("nncf 3.4", ("nncf==3.4.0", "torchao==0.17.0")),
    "torch_prune": ("torch.nn.utils.prune", ()),
}
BESIDE = ("torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0", "safetensors")  # every tool's

FEATURES = {
    "What can be removed": {
        "chain": "channels of convolutions, with BatchNorm",
        "depthwise": "through depthwise convolutions",
        "residual": "channels of a residual stream",
        "concatenation": "through concatenation",
        "shuffle": "through a channel shuffle",
        "recurrent": "hidden units of an LSTM",
        "gated": "a gated MLP's neurons",
        "heads": "attention heads; q, k and v apart",
        "grouped_queries": "key heads with their queries (GQA)",
        "queries_alone": "single query heads of every key head (GQA)",
        "fused_qkv": "heads where one matrix makes q, k and v (timm)",
        "one_module": "heads of `nn.MultiheadAttention` (torchvision)",
        "experts": "neurons of fused experts (transformers 5)",
        "whole_experts": "whole experts",
        "depth": "whole layers or branches",
        "unstructured": "single weights, set to zero (no smaller tensors)",
    },
    "How it is decided": {
        "signals": "criteria by name",
        "own_signal": "a criterion of one's own",
        "uneven": "layers by different shares, without a search",
        "search": "a search by a measured score of candidates",
        "budget_params": "a budget in parameters",
        "budget_flops": "a budget in FLOPs",
        "budget_latency": "a budget in measured time",
        "new_budget": "another budget without scoring again",
        "reasons": "says what stays, and why",
        "proven": "does not cut what it does not follow",
        "untouched": "the model that is given stays as it is",
    },
    "What comes with it": {
        "compensation": "what is lost is folded into what stays, without training",
        "sparse_training": "training towards sparsity before the cut",
        "distillation": "distillation from the uncut model",
        "quantisation": "quantisation in the same package",
        "reload": "a cut model is loaded without pickle",
        "onnx": "ONNX of the cut model is smaller, and equal",
        "checkpoint": "a checkpoint is cut without its model",
        "llm_folder": "a language model's folder in, a folder for `from_pretrained` out",
        "uneven_files": "files for servers that take layers of different widths",
        "processes": "several processes, one result",
        "blocks": "models larger than memory",
        "report": "a report",
        "command_line": "a command line",
        "frameworks": "models that are not PyTorch's",
    },
}
KEYS = [key for rows in FEATURES.values() for key in rows]
