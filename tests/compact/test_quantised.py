"""Quantised checkpoints: cut in whole blocks with their scales, and refused where a part of a block would stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fairkern as fk
from fairkern.types import Axis, FilePart, Files, FileTensor, Plan, PlanAxis, Silence
from tests.compact.test_streaming import read, write

BLOCK = 4
E, INNER, WIDTH = 3, 64, 32


def plan(removed: dict[tuple[str, int], np.ndarray], shapes: dict[str, tuple[int, ...]], files: Files | None = None):
    axes = tuple(
        PlanAxis(Axis(name, dim), shapes[name][dim], np.asarray(gone), Silence.NONE)
        for (name, dim), gone in removed.items()
    )
    return Plan("Net", (), axes, (), shapes, files=files)


def fp8(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.float8_e4m3fn)


def dequantised(weight: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
    """The values, block by block."""
    spread = scales.repeat_interleave(rows, 0)[: weight.shape[0]].repeat_interleave(columns, 1)[:, : weight.shape[1]]
    return weight.float() * spread


def checkpoint(folder: Path, tensors: dict[str, Tensor], block: list[int] | None = None) -> Path:
    write(folder, tensors, 10**6)
    said = {"quant_method": "fp8", **({"weight_block_size": block} if block else {})}
    (folder / "config.json").write_text(json.dumps({"quantization_config": said}))
    return folder


@pytest.mark.parametrize("said", [True, False])
def test_whole_blocks_of_fp8_go_with_their_scales(said, tmp_path):
    """Also the last block of rows, which is not full, and stays."""
    weight, scales = fp8((10, 12)), torch.rand(3, 3) + 0.5
    source = checkpoint(tmp_path / "in", {"w": weight, "w_scale_inv": scales}, [BLOCK, BLOCK])
    gone = {("w", 0): np.arange(4, 8), ("w", 1): np.arange(0, 4)}
    fk.compact_checkpoint(source, plan(gone, {"w": (10, 12)}), tmp_path / "out")
    left = read(tmp_path / "out")
    expected = dequantised(weight, scales, BLOCK, BLOCK)[[0, 1, 2, 3, 8, 9]][:, 4:]
    assert left["w"].dtype == torch.float8_e4m3fn
    assert torch.equal(dequantised(left["w"], left["w_scale_inv"], BLOCK, BLOCK), expected)


def test_a_part_of_a_block_is_refused_with_its_size(tmp_path):
    source = checkpoint(tmp_path / "in", {"w": fp8((8, 12)), "w_scale_inv": torch.rand(2, 3)}, [BLOCK, BLOCK])
    for gone in ([4, 5, 6, 8], [1, 2, 3, 4]):
        with pytest.raises(fk.InputError, match=r"w dim 1 is quantised in blocks of 4 positions.*multiple of 4"):
            fk.compact_checkpoint(source, plan({("w", 1): gone}, {"w": (8, 12)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scales", [(), (1,), (8, 1), (1, 12), (1, 1)])
def test_scales_for_all_or_for_rows_admit_any_cut(scales, tmp_path):
    weight, factor = fp8((8, 12)), torch.rand(scales) + 0.5
    source = checkpoint(tmp_path / "in", {"w": weight, "w_scale": factor})
    gone = {("w", 0): [1, 6], ("w", 1): [3, 4, 5]}
    fk.compact_checkpoint(source, plan(gone, {"w": (8, 12)}), tmp_path / "out")
    left = read(tmp_path / "out")
    expected = (weight.float() * factor)[[0, 2, 3, 4, 5, 7]][:, [0, 1, 2, 6, 7, 8, 9, 10, 11]]
    assert torch.equal(left["w"].float() * left["w_scale"], expected)


def test_blocks_whose_size_nobody_says_are_told_by_a_quotient_or_refused(tmp_path):
    gone = {("w", 1): np.arange(4)}
    source = checkpoint(tmp_path / "in", {"w": fp8((8, 12)), "w_scale_inv": torch.rand(2, 3)})
    fk.compact_checkpoint(source, plan(gone, {"w": (8, 12)}), tmp_path / "out")
    assert read(tmp_path / "out")["w_scale_inv"].shape == (2, 2)
    source = checkpoint(tmp_path / "odd", {"w": fp8((8, 10)), "w_scale_inv": torch.rand(2, 3)})
    with pytest.raises(fk.PlanMismatchError, match="how large a block is"):
        fk.compact_checkpoint(source, plan(gone, {"w": (8, 10)}), tmp_path / "none")


def test_experts_of_fp8_in_files_of_their_own_go_whole_and_move_up(tmp_path):
    """As DeepSeek-V3 is shipped: a stack in the model, matrices and their scales in the files."""
    tensors = {}
    for e in range(E):
        tensors[f"experts.{e}.up.weight"] = fp8((8, 12), e)
        tensors[f"experts.{e}.up.weight_scale_inv"] = torch.full((2, 3), float(e))
    said = tuple(
        FileTensor(f"experts.{e}.up.weight", (8, 12), (FilePart("stack", (e, (0, 0, 1), (1, 0, 1)), 8),))
        for e in range(E)
    )
    source = checkpoint(tmp_path / "in", tensors, [BLOCK, BLOCK])
    shapes = {"stack": (E, 8, 12)}
    fk.compact_checkpoint(source, plan({("stack", 0): [1]}, shapes, Files(said)), tmp_path / "out")
    left = read(tmp_path / "out")
    assert left.keys() == {f"experts.{e}.up.weight{end}" for e in range(2) for end in ("", "_scale_inv")}
    assert torch.equal(left["experts.1.up.weight"].float(), tensors["experts.2.up.weight"].float())
    assert left["experts.1.up.weight_scale_inv"].unique().tolist() == [2.0]


def mxfp4(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes [E, rows, columns / 32, 16] and scales [E, rows, columns / 32]."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (E, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
    return codes, torch.randint(0, 256, codes.shape[:-1], generator=generator, dtype=torch.uint8)


def packed() -> dict[str, Tensor]:
    up, down = mxfp4(2 * INNER, WIDTH, 0), mxfp4(WIDTH, INNER, 1)
    return {"up_blocks": up[0], "up_scales": up[1], "down_blocks": down[0], "down_scales": down[1]}


SHAPES = {"up": (E, WIDTH, 2 * INNER), "down": (E, INNER, WIDTH)}


def test_experts_and_blocks_of_mxfp4_go_whole(tmp_path):
    """As GPT-OSS is shipped: gate and up in turns, other inner units of every expert, in blocks of 32."""
    tensors = packed()
    source = checkpoint(tmp_path / "in", tensors)
    inner = np.stack([np.arange(32), np.arange(32, 64), np.arange(32)])
    rows = np.sort(np.concatenate([2 * inner, 2 * inner + 1], axis=1), axis=1)
    fk.compact_checkpoint(
        source, plan({("up", 2): rows, ("down", 1): inner, ("up", 0): [0], ("down", 0): [0]}, SHAPES), tmp_path / "out"
    )
    left = read(tmp_path / "out")
    stays = {1: slice(0, 64), 2: slice(64, 128)}
    for name in ("up_blocks", "up_scales"):
        assert torch.equal(left[name], torch.stack([tensors[name][e][at] for e, at in stays.items()]))
    for name in ("down_blocks", "down_scales"):
        assert torch.equal(left[name], torch.stack([tensors[name][1][:, :1], tensors[name][2][:, 1:]]))


def test_a_part_of_a_block_of_mxfp4_is_refused(tmp_path):
    source = checkpoint(tmp_path / "in", packed())
    inner = np.tile(np.arange(16), (E, 1))
    rows = np.sort(np.concatenate([2 * inner, 2 * inner + 1], axis=1), axis=1)
    with pytest.raises(fk.InputError, match="down dim 1 is quantised in blocks of 32"):
        fk.compact_checkpoint(source, plan({("up", 2): rows, ("down", 1): inner}, SHAPES), tmp_path / "out")


@pytest.mark.parametrize(
    ("ending", "what"),
    [("qweight", "AWQ or GPTQ"), ("weight_packed", "compressed-tensors"), ("weight.absmax", "bitsandbytes")],
)
def test_packs_of_four_bits_are_refused_by_name(ending, what, tmp_path):
    source = write(tmp_path / "in", {f"layers.0.up.{ending}": torch.zeros(8, 2, dtype=torch.int32)})
    (source / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "said"}}))
    with pytest.raises(fk.InputError, match=rf"layers\.0\.up\.{ending}: {what}.*said.*dequantised"):
        fk.compact_checkpoint(source, plan({("layers.0.up.weight", 0): [1]}, {"layers.0.up.weight": (8, 16)}), "out")


def test_scales_without_a_weight_that_the_plan_knows_are_refused(tmp_path):
    source = checkpoint(tmp_path / "in", {"w": fp8((8, 12)), "w_scale_inv": torch.rand(2, 3)}, [BLOCK, BLOCK])
    with pytest.raises(fk.PlanMismatchError, match="a tensor w_scale_inv of shape"):
        fk.compact_checkpoint(source, plan({}, {"v": (8, 12)}), tmp_path / "out")
