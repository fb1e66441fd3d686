#!/usr/bin/env bash
# llama.cpp: in a `deci` file a layer without MLP loses its attention, and one whose first layer has no heads is not read.
#
# Guessed: feed_forward_length and attention.head_count are read layer by layer, so 0 is a layer without that part, and
#   with the other one, wherever it stands.
# Seen with llama-cpp-python 0.3.36 (its llama.cpp, CPU) and gguf 0.19.0: a layer between others with 0 as its
#   feed-forward length passes on what it was given, though its attention tensors are loaded: logits are those of a file
#   without that attention, to the bit. The same layer with an MLP of zeros computes its attention. A file whose first
#   layer has 0 heads does not load where a later one has some ("attn_q.weight has wrong shape; expected 32, 0"):
#   attention.key_length is only read where the first layer has heads. With first heads of zeros it loads. A layer
#   without heads further on is as one would guess.
# Why it matters: a model that lost an MLP to pruning loses the attention beside it in llama.cpp, without a word.
# fairkern: writes parts of zeros in those two places, which add nothing or the bias of what was there
#   (fairkern/hf/gguf.py, tests/hf/test_gguf.py, tests/hf/test_gguf_llama_cpp.py).
#
# Installs gguf and llama-cpp-python in a temporary folder (pip compiles the latter: ten minutes), runs them, and fails
# where the behaviour is another.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet numpy gguf==0.19.0 llama-cpp-python==0.3.36
cd "$place"
"$place/venv/bin/python" - 2>errors <<'PYTHON' || { cat errors >&2; exit 1; }
import gguf
import llama_cpp
import numpy as np

HIDDEN, SIZE, WORDS = 32, 16, 40


def write(path, layers):
    """`layers`: heads, width and the scale of weights, of attention and of the MLP."""
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "deci")
    writer.add_block_count(len(layers))
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_head_count([heads for heads, *_ in layers])
    writer.add_head_count_kv([heads for heads, *_ in layers])
    writer.add_feed_forward_length([width for _, width, *_ in layers])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_key_length(SIZE)
    writer.add_value_length(SIZE)
    writer.add_rope_dimension_count(SIZE)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("no_vocab")

    def add(name, *shape, scale=1.0):
        writer.add_tensor(name, (draw.normal(size=shape) * scale).astype(np.float32))

    add("token_embd.weight", WORDS, HIDDEN)
    add("output.weight", WORDS, HIDDEN)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for index, (heads, width, attention, mlp) in enumerate(layers):
        draw = np.random.default_rng(index + 1)
        if heads:
            writer.add_tensor(f"blk.{index}.attn_norm.weight", np.ones(HIDDEN, np.float32))
            for part in "qkv":
                add(f"blk.{index}.attn_{part}.weight", heads * SIZE, HIDDEN, scale=0.3)
            add(f"blk.{index}.attn_output.weight", HIDDEN, heads * SIZE, scale=attention)
        draw = np.random.default_rng(index + 100)
        if width:
            writer.add_tensor(f"blk.{index}.ffn_norm.weight", np.ones(HIDDEN, np.float32))
            for part in "gate", "up":
                add(f"blk.{index}.ffn_{part}.weight", width, HIDDEN, scale=0.3)
            add(f"blk.{index}.ffn_down.weight", HIDDEN, width, scale=mlp)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(*layers):
    write("model.gguf", layers)
    try:
        model = llama_cpp.Llama("model.gguf", n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    except ValueError:
        return None
    model.eval([3, 1, 4, 1, 5])
    found = np.array(model.scores[:5])
    model.close()
    return found


WHOLE = (2, 48, 0.3, 0.3)
no_mlp = logits(WHOLE, (2, 0, 0.3, 0.3), WHOLE)
neither = logits(WHOLE, (0, 0, 0.3, 0.3), WHOLE)
mlp_of_zeros = logits(WHOLE, (2, 48, 0.3, 0.0), WHOLE)
no_heads = logits(WHOLE, (0, 48, 0.3, 0.3), WHOLE)
heads_of_zeros = logits(WHOLE, (2, 48, 0.0, 0.3), WHOLE)
first_without_heads = logits((0, 48, 0.3, 0.3), WHOLE, WHOLE)
first_of_zeros = logits((2, 48, 0.0, 0.3), WHOLE, WHOLE)
print("without an MLP, away from without both:", np.abs(no_mlp - neither).max())
print("without an MLP, away from an MLP of zeros:", np.abs(no_mlp - mlp_of_zeros).max())
print("without heads, away from heads of zeros:", np.abs(no_heads - heads_of_zeros).max())
print("the first layer without heads loads:", first_without_heads is not None)
assert np.array_equal(no_mlp, neither)
assert np.abs(no_mlp - mlp_of_zeros).max() > 0.1
assert np.abs(no_heads - heads_of_zeros).max() < 1e-4
assert first_without_heads is None
assert first_of_zeros is not None
PYTHON
