"""What of a model's output is compared with the uncut model's, at which positions, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fairkern.capture.structure import Parts, describe
from fairkern.errors import InputError
from fairkern.healing.settings import Divergence


@dataclass(frozen=True)
class Compared:
    """How far a batch's answers are apart: the mean over the positions that count, and how many these are. `positions`:
    which, bool, as of the first answer; None: all. `samples`: how many the batch holds."""

    loss: Tensor
    count: int
    positions: Tensor | None
    samples: int


def answers(output: Any) -> dict[str, Tensor]:
    """The tensors of an output that are compared, by name: those that are called logits, else all floating ones at the
    outermost level, but the loss."""
    if isinstance(output, Tensor):
        named: Mapping[Any, Any] = {"": output}
    elif isinstance(output, Mapping):
        named = output
    elif isinstance(output, (tuple, list)):
        named = output._asdict() if hasattr(output, "_asdict") else dict(enumerate(output))
    else:
        named = getattr(output, "__dict__", {})
    found = {
        str(name): value
        for name, value in named.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim and name != "loss"
    }
    return {name: value for name, value in found.items() if name.endswith("logits")} or found


def compared(parts: Parts, ours: Any, theirs: Any, how: Divergence, temperature: float, shifted: bool) -> Compared:
    """The outputs of the cut model and of the whole one on the same batch.

    `shifted`: labels stand one position behind the answers that they are for.

    Raises InputError: answers of other shapes, no answers, or how they are to be compared cannot be told.
    """
    small, model = answers(ours), answers(theirs)
    if not small or not model:
        which = "the cut" if not small else "the uncut"
        raise InputError(
            f"{which} model returns {describe(ours if not small else theirs)}, in which there is no answer to compare: "
            "expected a tensor, or a mapping, a tuple or a dataclass of tensors; lists of boxes and the like are not "
            "distilled: train the cut model on its own loss"
        )
    if len(model) == 1 and small.keys() != model.keys():  # in train mode a model may return more than in eval mode
        small = {next(iter(model)): small.get(next(iter(model)), next(iter(small.values())))}
    losses, first, mask = [], None, _mask(parts, theirs)
    for name, target in model.items():
        answer = small.get(name)
        if answer is None or answer.shape != target.shape:
            shown = "nothing" if answer is None else describe(answer)
            raise InputError(
                f"the cut model answers with {shown}{f' as {name!r}' if name else ''} where the uncut one answers with "
                f"{describe(target)}; both have to be of the same task"
            )
        one = _compared(name, answer, target.to(answer.device), parts.targets, mask, how, temperature, shifted)
        losses.append(one.loss)
        first = first or one
    assert first is not None
    return replace(first, loss=torch.stack(losses).mean())


def _compared(
    name: str,
    answer: Tensor,
    target: Tensor,
    targets: Any,
    mask: Tensor | None,
    how: Divergence,
    temperature: float,
    shifted: bool,
) -> Compared:
    labels = targets.to(answer.device) if isinstance(targets, Tensor) else None
    classes = labels if labels is not None and _integers(labels) else None
    dim = _class_dim(answer, classes)
    if how is Divergence.AUTO:
        how = _told(name, answer, labels, classes, dim)
    dtype = torch.promote_types(answer.dtype, torch.float32)
    answer, target = answer.to(dtype), target.to(dtype)
    if how is Divergence.MSE:
        shape = answer.shape[: max(answer.ndim - 1, 1)]
        positions = _positions(classes, mask, shape, shifted)
        apart = (answer - target).square()
        if positions is not None:
            apart = apart[positions]
        count = shape.numel() if positions is None else len(apart)
    else:
        if answer.ndim < 2 or answer.shape[dim] < 2:
            raise InputError(
                f"divergence={how.value!r} compares distributions over classes, and the models answer with "
                f"{describe(answer)}, which has no two classes: pass divergence='mse'"
            )
        answer, target = answer.movedim(dim, -1), target.movedim(dim, -1)
        positions = _positions(classes, mask, answer.shape[:-1], shifted)
        one, two = (t.flatten(0, -2) if positions is None else t[positions] for t in (answer, target))
        apart = _kl(one, two, temperature, reverse=how is Divergence.REVERSE)
        count = len(apart)
    return Compared(apart.mean() if count else apart.sum(), count, positions, len(answer))


def _integers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _kl(answer: Tensor, target: Tensor, temperature: float, *, reverse: bool) -> Tensor:
    """Per row; of answers softened by the temperature, times its square (Hinton et al. 2015), so that gradients are as
    large at any. A class that the first distribution rules out (−inf) adds nothing."""
    ours, theirs = ((t / temperature).log_softmax(-1) for t in (answer, target))
    first, second = (ours, theirs) if reverse else (theirs, ours)
    probability = first.exp()
    return temperature**2 * (probability * torch.where(probability > 0, first - second, 0)).sum(-1)


def _told(name: str, answer: Tensor, labels: Tensor | None, classes: Tensor | None, dim: int) -> Divergence:
    """Whether an answer is logits or values, by its name and by what its targets are."""
    if labels is not None and (classes is None or classes.shape == answer.shape):  # a value for each, or several true
        return Divergence.MSE
    if classes is not None or name.endswith("logits"):
        return Divergence.FORWARD if answer.ndim > 1 and answer.shape[dim] > 1 else Divergence.MSE
    raise InputError(
        f"whether the models answer with logits or with values cannot be told from {describe(answer)} without targets: "
        "pass divergence='forward_kl' for logits or 'mse' for values"
    )


def _class_dim(answer: Tensor, classes: Tensor | None) -> int:
    """The dimension of the classes: the one that targets lack; of images the second, elsewhere the last."""
    usual = 1 if answer.ndim > 3 else answer.ndim - 1
    fits = [d for d in range(1, answer.ndim) if classes is not None and _without(answer, d) == classes.shape]
    return usual if usual in fits or not fits else fits[0]


def _without(answer: Tensor, dim: int) -> torch.Size:
    return answer.shape[:dim] + answer.shape[dim + 1 :]


def _positions(classes: Tensor | None, mask: Tensor | None, shape: torch.Size, shifted: bool) -> Tensor | None:
    """Which positions count: not those of padding, by the attention mask, nor those with a negative label. `shape` is
    that of the positions. None: all."""
    counted = None
    if classes is not None and classes.shape == shape:
        counted = classes >= 0
        if shifted:
            counted = F.pad(counted[:, 1:], (0, 1), value=False)
    if mask is not None and mask.shape == shape:
        kept = mask.to(counted.device if counted is not None else mask.device) > 0
        counted = kept if counted is None else counted & kept
    return None if counted is None or bool(counted.all()) else counted


def _mask(parts: Parts, output: Any) -> Tensor | None:
    """The attention mask of what the answers are for: of the decoder, where there is one."""
    call = parts.call
    if not isinstance(call, Mapping):
        return None
    said = (*call, *(output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else ()))
    decodes = any(str(name).startswith(("decoder_", "encoder_")) for name in said)
    mask = call.get("decoder_attention_mask" if decodes else "attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def shifted(parts: Parts, output: Any) -> bool:
    """Whether a model's own loss has labels one position behind its answers, as language models do: which of the two
    cross-entropies it is nearer to."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    else:
        loss = output[0] if isinstance(output, tuple) and output else getattr(output, "loss", None)
    labels, found = parts.targets, list(answers(output).values())
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not isinstance(labels, Tensor) or not found:
        return False
    logits = found[0].float()
    if logits.ndim != 3 or labels.shape != logits.shape[:2] or labels.is_floating_point() or labels.shape[1] < 2:
        return False
    labels = labels.to(logits.device)
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    behind = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return bool((loss.to(plain.device) - behind).abs() < (loss.to(plain.device) - plain).abs())
