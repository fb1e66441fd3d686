"""Healing: a cut model learns from the uncut one what the cut has cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fairkern import options, report
from fairkern.checks import RUN, check_data, check_model
from fairkern.errors import InputError
from fairkern.healing.run import Run
from fairkern.healing.settings import Divergence, Settings, TaskLoss
from fairkern.model.autocast import Ambient, without_autocast
from fairkern.model.in_use import at_work
from fairkern.model.tensors import device_of, memory_of, named_tensors
from fairkern.model.untouched import same_attributes, same_grads, untouched
from fairkern.prove import check_values
from fairkern.ranks import alone
from fairkern.results import PathLike
from fairkern.surroundings import stage

__all__ = ["Divergence", "Healed", "heal"]


@dataclass(frozen=True)
class Healed:
    """What healing did. `losses`: of every step, before its update; `samples` and `tokens`: how many were seen, the
    latter the positions that counted (of a classifier one per sample); `hidden`: the modules whose outputs were
    compared; `began`: how many of the steps an earlier call had done, which the other numbers include."""

    steps: int
    losses: list[float]
    seconds: float
    samples: int
    tokens: int
    hidden: tuple[str, ...]
    began: int = 0

    def __str__(self) -> str:
        seen = f"{self.samples:,} samples" + (f", {self.tokens:,} tokens" if self.tokens != self.samples else "")
        steps = "1 step" if self.steps == 1 else f"{self.steps:,} steps"
        few = max(1, len(self.losses) // 10)  # a single batch says little
        first, last = (sum(some) / few for some in (self.losses[:few], self.losses[-few:]))
        which = f" (means of the first and the last {few:,} steps)" if few > 1 else ""
        return f"healed in {steps} ({seen}, {self.seconds:.1f} s): loss {first:.4g} → {last:.4g}{which}"


@stage
def heal(
    small: nn.Module,
    model: nn.Module,
    loader: Iterable[Any],
    *,
    steps: int,
    lr: float = 1e-4,
    warmup: int | None = None,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    accumulate: int = 1,
    temperature: float = 1.0,
    divergence: str = "auto",
    hidden: float | None = None,
    hidden_at: Sequence[str] | None = None,
    loss_fn: TaskLoss | None = None,
    loss_weight: float = 1.0,
    gradient_checkpointing: bool = False,
    checkpoint: PathLike | None = None,
    every: int | None = None,
    seed: int = 0,
    progress: bool = True,
    ranks: Literal[False] | None = None,
) -> Healed:
    """Distil the uncut `model` into `small`, which was cut from it, in place.

    The loss is how far the two models' answers are apart, and the outputs of their blocks where shapes agree. No labels
    are needed. `small` trains in train mode (dropout drops, BatchNorm counts), `model` answers in eval mode; what asks
    for no gradients is not trained. Modes, hooks, `.grad`, random states and all of `model` are put back. Weights
    change in whole steps: after an error or Ctrl-C they are those of the last step that was finished.

    Args:
        small: the cut model, in float32, float64 or bfloat16. A bfloat16 weight has a master in float32 while it is
            trained, which is what the optimizer changes; the weight is that, rounded.
        model: what it was cut from, on any device.
        loader: batches as for `score`; iterated again as often as it takes. It may shuffle by its own generator, or by
            that of the process, which begins with `seed`.
        steps: updates.
        lr: learning rate after `warmup` steps (default: a twentieth of them), in which it rises in a line; then it
            falls along a cosine towards zero.
        weight_decay: of AdamW (decoupled), but for norms and what has one dimension: biases, scales.
        clip: the norm that all gradients together may have; None: any.
        accumulate: batches per step. All positions of a step weigh the same, as if they had been one batch.
        temperature: softens both models' answers; the divergence is multiplied by its square.
        divergence: "forward_kl", Σ p log(p / q) with p the uncut model's distribution over classes; "reverse_kl", the
            other way round; "mse", the mean squared difference, for answers that are no logits. "auto": forward_kl for
            what a model returns as `logits` and where targets are integers, "mse" where these are real numbers, or as
            many as the answers, or there is one class only. Classes lie in the last dimension, of images [N, C, H, W]
            in the second. Padding (`attention_mask`) and negative labels (−100) are left out.
        hidden: weight of the outputs of blocks: their mean squared difference over the mean square of the uncut
            model's. None: 1 where there are blocks of which shapes agree. Blocks are the items of lists of modules; of
            a list that has become shorter, the last one is compared. Of a block that returns several tensors, the
            first is.
        hidden_at: names or `fnmatch` patterns of other modules, of the same name in both models.
        loss_fn: `loss_fn(output, targets)` → scalar, as for `score`: the task's own loss, added with `loss_weight`.
        gradient_checkpointing: blocks keep their inputs only, and are run again in the backward pass: less memory, a
            third more time. By the model's own switch where it has one.
        checkpoint: a folder for `healing.safetensors`, written after every `every` steps (default: a tenth of them) and
            at the end: weights, AdamW's moments, what was seen. The same call on the same cut model goes on from there,
            to the same weights as without a break (to the bit on a CPU with as many threads): it takes the loader's
            batches that were seen already, and drops them. Of a call that had finished, `small` gets the weights. The
            file has sums of both models: `small` is to be as it was cut, or as it was when the file was written (after
            an error between two writes it is neither: cut it again), `model` as it was.
        seed: of dropout, and of what the loader draws.
        progress: show a progress bar on a terminal.
        ranks: healing is done by one process. Among several, False says that this is one that works by itself.

    Raises:
        InputError: before anything changes: options of the wrong kind, nothing to train, weights in float16, a
            `small` with more weights than `model` (they were given in the other order); at the first batch: answers
            of other shapes or that are no tensors (detectors), a divergence that cannot be told; later: a loader
            that ends and cannot be iterated again. A checkpoint of a call with other options.
        NonFiniteError: a loss or a gradient that is not finite; names the step.
        ArtefactError: a checkpoint that is damaged, edited or of another cut or uncut model.

    Cost: per step a forward pass of `model` and a forward and a backward pass of `small`. Memory: 12 bytes per weight
    that is trained (moments and gradient; bfloat16: 14, with the master), and both models' answers in float32.

    Example:
        >>> import torch, fairkern as fk
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> loader = [(torch.randn(16, 4), torch.arange(16) % 2)]
        >>> small = fk.apply(net, fk.trace(net, loader[0][0]).plan(keep_params=0.5))
        >>> healed = fk.heal(small, net, loader, steps=20, lr=1e-2, progress=False)
        >>> healed.losses[-1] < healed.losses[0]
        True
    """
    alone(ranks, "heal()")
    options.instance("small", small, nn.Module, options.MODEL)
    check_model(small)
    check_model(model)
    check_data(loader, loss_fn)
    folder = None if checkpoint is None else options.place("checkpoint", checkpoint)
    settings = Settings(
        steps=steps,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        temperature=temperature,
        divergence=divergence,  # type: ignore[arg-type]
        hidden=hidden,
        hidden_at=hidden_at,  # type: ignore[arg-type]
        loss_fn=loss_fn,
        loss_weight=loss_weight,
        gradient_checkpointing=gradient_checkpointing,
        every=every,
        seed=seed,
    )
    show = options.flag("progress", progress)
    check_values(small, RUN)
    check_values(model, RUN)
    _check_apart(small, model)
    _check_smaller(small, model)
    ambient = Ambient.now(device_of(small))
    if any(dtype is torch.float16 for _, dtype in ambient.entered):
        raise InputError(
            "gradients vanish under autocast to float16, unless losses are scaled, which they are not here: enter "
            "torch.autocast(device, torch.bfloat16), or none"
        )
    with (
        at_work(small, "heal()"),
        at_work(model, "heal()"),
        same_attributes(small),
        same_grads(small),
        untouched(model),
        without_autocast(),
    ):
        run = Run(small, model, settings, ambient)
        with report.progress(show) as on_step:
            began = run.run(loader, folder, on_step)
    done = run.progress
    return Healed(done.steps, list(done.losses), done.seconds, done.samples, done.tokens, tuple(done.hidden), began)


def _check_apart(small: nn.Module, model: nn.Module) -> None:
    """InputError where training one would change the other."""
    theirs = {memory_of(tensor) or id(tensor) for tensor in named_tensors(model).values()}
    for name, parameter in small.named_parameters():
        if parameter.requires_grad and (memory_of(parameter) or id(parameter)) in theirs:
            raise InputError(
                f"{name} of small is a tensor of the uncut model too, which would learn from itself: give it a copy of "
                "its own, copy.deepcopy(small), or freeze what they share with requires_grad_(False)"
            )


def _check_smaller(small: nn.Module, model: nn.Module) -> None:
    """InputError where the uncut model was given as the cut one. Biases do not count: compensation adds some."""

    def weights(of: nn.Module) -> int:
        return sum(p.numel() for name, p in of.named_parameters() if "bias" not in name.rpartition(".")[2])

    ours, theirs = weights(small), weights(model)
    if ours > theirs:
        raise InputError(
            f"small has {ours:,} weights and the model that it was cut from {theirs:,}: give the cut model first, "
            "heal(small, model, loader, …)"
        )
