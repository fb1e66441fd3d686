"""Module attributes that hold a size and must follow the cut: by class and attribute name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fairkern.axes.facts import GroupedConvolution
from fairkern.axes.tracing import Tracing
from fairkern.model.attributes import named_numbers, whole_numbers
from fairkern.model.linear import transposed_linear
from fairkern.model.names import words
from fairkern.model.tensors import named_tensors
from fairkern.types import Extent, SizeAttribute

# class -> attribute -> (tensor of the module, dimension)
_BY_CLASS: tuple[tuple[tuple[type[nn.Module], ...], dict[str, tuple[str, int]]], ...] = (
    ((nn.Linear,), {"in_features": ("weight", 1), "out_features": ("weight", 0)}),
    ((nn.modules.batchnorm._NormBase,), {"num_features": ("weight|running_mean", 0)}),
    ((nn.Embedding,), {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    ((nn.PReLU,), {"num_parameters": ("weight", 0)}),
    ((nn.Bilinear,), {"out_features": ("weight", 0), "in1_features": ("weight", 1), "in2_features": ("weight", 2)}),
    ((nn.RNNBase,), {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}),
    ((nn.RNNCellBase,), {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)}),
    (
        (nn.MultiheadAttention,),
        {
            "embed_dim": ("in_proj_weight|q_proj_weight", 1),
            "kdim": ("in_proj_weight|k_proj_weight", 1),
            "vdim": ("in_proj_weight|v_proj_weight", 1),
        },
    ),
)


def size_attributes(model: nn.Module, tracing: Tracing) -> Iterator[tuple[str, str, np.ndarray]]:
    """(module path, attribute, nodes whose count it holds), for every module of a known class."""
    first = {id(t): name for name, t in named_tensors(model).items()}
    graph = tracing.graph
    batch_norms = {n.module: n.channels for n in graph.batch_norms}
    group_norms = {n.module: n for n in graph.group_norms}
    grouped = {c.weight: c for c in graph.grouped_convolutions}

    def nodes(module: nn.Module, tensor_names: str, dim: int) -> tuple[list[str], np.ndarray | None] | None:
        for tensor_name in tensor_names.split("|"):
            # not by getattr: a parametrised weight is computed anew by every look at it
            tensor = module._parameters.get(tensor_name, module._buffers.get(tensor_name))
            held = [] if tensor is None else [tensor]
            if not held and parametrize.is_parametrized(module, tensor_name):
                originals = module.parametrizations[tensor_name].parameters(recurse=False)  # type: ignore[index,union-attr]
                held = sorted(originals, key=Tensor.numel, reverse=True)
            if held:
                names = [first[id(t)] for t in held]  # a tied tensor goes by its first name
                return names, tracing.tensors[names[0]][dim]
        return None

    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            yield from _convolution(path, module, grouped, nodes(module, "weight", 0), nodes(module, "weight", 1))
            continue
        if isinstance(module, nn.modules.batchnorm._NormBase) and path in batch_norms:
            yield path, "num_features", batch_norms[path]
            continue
        if isinstance(module, nn.MultiheadAttention):
            given = (size.nodes for size in graph.given_sizes if size.module == path)
            heads = (n for n in given if len(n) == module.num_heads)
            first_heads = next(heads, None)  # of the query, which is split before anything else
            if first_heads is not None:
                yield path, "num_heads", first_heads
        if isinstance(module, nn.GroupNorm) and path in group_norms:
            yield path, "num_channels", group_norms[path].channels
            yield path, "num_groups", group_norms[path].groups
            continue
        if transposed_linear(module):
            for attribute, dim in (("nx", 0), ("nf", 1)):
                found = nodes(module, "weight", dim)
                if found is not None and found[1] is not None and hasattr(module, attribute):
                    yield path, attribute, found[1]
        for classes, attributes in _BY_CLASS:
            if isinstance(module, classes):
                for attribute, (tensor_names, dim) in attributes.items():
                    found = nodes(module, tensor_names, dim)
                    if found is not None and found[1] is not None:
                        yield path, attribute, found[1]


# Attributes that hold the size of one head: never what a cut of heads changes, whatever number they share with it.
_PER_HEAD = frozenset(
    {"head_dim", "dim_head", "head_size", "attention_head_size", "d_kv", "key_value_proj_dim", "qkv_dim", "key_dim"}
)


# Words of attributes that say which of its kind a module is (`layer_idx`), and so where its cache lies.
_WHICH = frozenset({"idx", "index", "id"})
# Words of attributes that count places in a sequence (`relative_attention_num_buckets`). That there are as many buckets
# as heads, or as a projection is wide, is a coincidence that no proof sees on short sequences.
_PLACES = frozenset({"bucket", "buckets", "distance", "distances", "positions", "window"})


def _may_count(attribute: str) -> bool:
    """Whether an attribute may hold how many units there are, going by its name."""
    return attribute.lstrip("_") not in _PER_HEAD and not words(attribute) & (_WHICH | _PLACES)


def observed_attributes(
    model: nn.Module, tracing: Tracing, extent_of: Callable[[np.ndarray], int], cut: Callable[[int], bool]
) -> Iterator[tuple[str, str, int]]:
    """(module path, attribute, extent) of whole-number attributes that reshapes, expands and splits of their own
    module were given: those that equal the length of exactly one extent that can shrink; where no attribute does,
    numbers that the module holds by name in a dictionary or tuple. The proof has the last word.
    """
    by_module: dict[str, dict[int, set[int]]] = {}
    for given in tracing.graph.given_sizes:
        extent = extent_of(given.nodes)
        if cut(extent):
            by_module.setdefault(given.module, {}).setdefault(len(given.nodes), set()).add(extent)
    for path, lengths in by_module.items():
        module = model.get_submodule(path)
        if _known(module):
            continue
        for length, extents in lengths.items():
            if len(extents) == 1:
                held = _equal(whole_numbers(module), length) or _equal(named_numbers(module), length)
                yield from ((path, attribute, next(iter(extents))) for attribute in held)


def attributes_like_children(
    model: nn.Module, held: Sequence[SizeAttribute], extents: Sequence[Extent]
) -> Iterator[SizeAttribute]:
    """Whole-number attributes that equal a size which a direct submodule holds: what code compares its input with.

    Of the sizes of one length the one that goes by the attribute's own name, or else the only one that is left. Nothing
    shows that the code reads the attribute: what fails without these may be proven with them.
    """
    of_children: dict[str, list[SizeAttribute]] = {}
    for size in held:
        if not size.observed and extents[size.extent].parts:
            of_children.setdefault(size.module.rpartition(".")[0], []).append(size)
    known = {(size.module, size.attribute) for size in held}
    for path, sizes in of_children.items():
        own = whole_numbers(model.get_submodule(path))
        numbers = {name: n for name, n in own if (path, name) not in known and _may_count(name)}
        left: dict[int, set[int]] = {}
        for size in sizes:
            left.setdefault(extents[size.extent].length, set()).add(size.extent)
        found: dict[str, int] = {}
        for name, n in numbers.items():
            same = {size.extent for size in sizes if size.attribute == name and extents[size.extent].length == n}
            if len(same) == 1:
                found[name] = same.pop()
        for name, n in numbers.items():
            others = left.get(n, set()) - {extent for other, extent in found.items() if numbers[other] == n}
            if name not in found and len(others) == 1:
                found[name] = next(iter(others))
        yield from (SizeAttribute(path, name, extent, observed=True) for name, extent in found.items())


def attributes_like_own(
    model: nn.Module, tracing: Tracing, extent_of: Callable[[np.ndarray], int], extents: Sequence[Extent]
) -> Iterator[SizeAttribute]:
    """Whole-number attributes that equal one length of the tensors that the module holds itself, where that is of one
    extent only: what code fills up such a tensor to (a slope per head)."""
    lengths: dict[str, dict[int, set[int]]] = {}
    for name, dims in tracing.tensors.items():
        for nodes in dims:
            extent = extent_of(nodes) if nodes is not None else None
            if extent is not None and extents[extent].parts:
                held = lengths.setdefault(name.rpartition(".")[0], {})
                held.setdefault(extents[extent].length, set()).add(extent)
    for path, found in lengths.items():
        module = model.get_submodule(path)
        if not _known(module):
            for length, same in found.items():
                if len(same) == 1:
                    held_by = _equal(whole_numbers(module), length)
                    yield from (SizeAttribute(path, name, next(iter(same)), observed=True) for name in held_by)


def _known(module: nn.Module) -> bool:
    """Whether its attributes are known by its class."""
    kinds: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, *(c for classes, _ in _BY_CLASS for c in classes))
    return isinstance(module, kinds) or transposed_linear(module)


def _equal(numbers: Iterable[tuple[str, int]], length: int) -> list[str]:
    """The attributes that hold this number and may count units."""
    return [path for path, n in numbers if n == length and _may_count(path.rpartition(".")[2])]


def _convolution(
    path: str,
    module: nn.modules.conv._ConvNd,
    grouped: Mapping[str, GroupedConvolution],
    dim0: tuple[list[str], np.ndarray | None] | None,
    dim1: tuple[list[str], np.ndarray | None] | None,
) -> Iterator[tuple[str, str, np.ndarray]]:
    if dim0 is None or dim1 is None:
        return
    made, read = (dim1[1], dim0[1]) if module.transposed else (dim0[1], dim1[1])
    if module.groups > 1:
        seen = next((grouped[name] for name in dim0[0] if name in grouped), None)
        read, made = (None, None) if seen is None else (seen.channels, seen.made)
        if seen is not None and seen.groups is not None:
            yield path, "groups", seen.groups
    if made is not None:
        yield path, "out_channels", made
    if read is not None:
        yield path, "in_channels", read
