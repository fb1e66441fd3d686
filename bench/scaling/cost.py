"""What a walk by blocks takes, from a decoder's shape and a machine's rates: seconds by stage, and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from bench.scaling.decoder import Decoder

BYTES = 2  # of a weight and of an activation: bfloat16
ORDER = 1.0  # multiply-adds of an order over n³: half for the inverse, half for what changes while it shrinks
SOLVE = 1.5  # the same of a refit: a factorisation, and the right-hand sides of the layers that read there
MATRICES = 2  # n × n in float64 while an order is solved


@dataclass(frozen=True)
class Machine:
    """Rates of one device: multiply-adds per second of passes (in the model's dtype), of sums of second moments, of
    orders (float64), bytes per second of the disk."""

    name: str
    passes: float
    moments: float
    orders: float
    disk: float
    devices: int = 1


@dataclass(frozen=True)
class Cost:
    """Seconds by stage; `peak` bytes of one device's memory, `disk` bytes beside the two checkpoints."""

    seconds: dict[str, float]
    peak: float
    disk: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def cost(decoder: Decoder, tokens: int, machine: Machine, keep: float = 0.7) -> Cost:
    """Of a cut that keeps this share, calibrated on so many tokens.

    Forwards once; backwards once, which computes every block again and its activations' gradients; forwards in both
    models. Devices share out tokens and orders, and the refits not at all.
    """
    forward = decoder.multiply_adds * tokens
    taps = sum(count * width**2 for width, count in decoder.read.items()) * tokens
    orders = sum(count * width**3 for width, count in decoder.orders.items())
    stored = decoder.parameters * BYTES
    n = machine.devices
    seconds = {
        "forwards": forward / machine.passes / n,
        "backwards": 2 * forward / machine.passes / n,
        "second moments": taps / 2 / machine.moments / n,
        "orders": ORDER * orders / machine.orders / n,
        "forwards in both, refitted": (2 * forward / machine.passes + 2 * taps / machine.moments) / n
        + SOLVE * sum(count * width**3 for width, count in decoder.read.items()) / machine.orders,
        "reading and writing": (3 + keep) * stored / machine.disk,
    }
    widest = max(decoder.orders)
    peak = 3 * decoder.block * BYTES + MATRICES * 8 * widest**2
    return Cost(seconds, peak, BYTES * tokens * decoder.hidden * (decoder.layers + 3))
