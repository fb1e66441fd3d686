"""llama.cpp's architectures: what each computes, which tensors it reads, and what they are called.

Learnt from how llama.cpp loads and builds them. It reads a file by what the architecture expects, and refuses tensors
that it does not know; numbers that it does not know are left out in silence, so nothing is written that is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairkern.errors import InputError
from fairkern.hf.blocks import Blocks
from fairkern.hf.decoder import Family

_BASE = {f"{part}.weight" for part in ("attention_norm", "q", "k", "v", "o", "mlp_norm", "gate", "up", "down")}
_QKV = {"q.bias", "k.bias", "v.bias"}
_ALL_BIASES = _QKV | {"o.bias", "gate.bias", "up.bias", "down.bias"}
_HEAD_NORMS = {"q_norm.weight", "k_norm.weight"}

TENSORS = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
ENDS = {"embedding": "token_embd", "norm": "output_norm", "output": "output"}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    `interleaved`: pairs of a head that are rotated together lie beside each other, not half a head apart. `factors`:
    reads what frequencies are divided by, one by one. `square`: heads fill the hidden size. `by_layer`: layers may
    differ. `needs`, `may`: places that every layer must have, or may.
    """

    name: str
    variant: str
    needs: frozenset[str]
    may: frozenset[str]
    interleaved: bool = False
    factors: bool = False
    square: bool = False
    by_layer: bool = False
    output: bool = True

    def why_not(self, blocks: Blocks, family: Family) -> str | None:
        """What of a decoder it cannot say; None where it can say all."""
        if family.variant.name != self.variant:
            return f"computes what the {family.variant.name} family does"
        if not blocks.equal and not self.by_layer:
            return "has layers of different sizes"
        extra = sorted(blocks.places - self.needs - self.may)
        if extra:
            first = next(block.tensors[extra[0]] for block in blocks.blocks if extra[0] in block.tensors)
            return f"has {extra[0]!r} ({first.name})"
        lacking = sorted(self.needs - blocks.places) if not self.by_layer else []
        if lacking:
            return f"has no {lacking[0]!r}"
        if len(set(family.factors)) > 1 and not self.factors:
            return "divides the frequencies of the rotary embedding one by one"
        if self.square and blocks.blocks[0].heads * blocks.head_size != blocks.hidden:
            return "has heads that do not fill the hidden size"
        if not self.output and not family.tied:
            return "has an output of its own"
        return None


ARCHITECTURES = (
    Architecture("qwen2", "llama", frozenset(_BASE | _QKV), frozenset(), square=True),
    Architecture("qwen3", "llama", frozenset(_BASE | _HEAD_NORMS), frozenset(_QKV)),
    Architecture("llama", "llama", frozenset(_BASE), frozenset(_ALL_BIASES), interleaved=True, factors=True),
    Architecture("gemma", "gemma", frozenset(_BASE), frozenset(_QKV), output=False),
    Architecture(
        "deci", "llama", frozenset(_BASE), frozenset(_ALL_BIASES), interleaved=True, factors=True, by_layer=True
    ),
)
"""In the order in which they are tried: the family's own name where it can say all, then the wider one."""


def architecture_of(blocks: Blocks, family: Family) -> Architecture:
    """The first that can say all of a decoder. Raises InputError, with each one's reason, where none can."""
    reasons = {}
    for architecture in ARCHITECTURES:
        why_not = architecture.why_not(blocks, family)
        if why_not is None:
            return architecture
        if architecture.variant == family.variant.name:
            reasons[architecture.name] = why_not
    said = "; ".join(f"not {name}: the model {why}" for name, why in reasons.items())
    raise InputError(f"no architecture of llama.cpp can say this model ({said})")
