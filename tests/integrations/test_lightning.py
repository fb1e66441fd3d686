"""Pruning within a Lightning run: the data, the optimizers, and every way back from a checkpoint."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fairkern as fk

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging

from fairkern.integrations.lightning import Prune, restore

loss_fn = nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def _quiet() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Classifier(LightningModule):
    """A small net in an attribute, without biases where compensation would add them."""

    def __init__(self, rate: float = 0.05) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12, bias=False), nn.ReLU(), nn.Linear(12, 3)
        )
        self.rate = rate
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        self.seen.append(self.net[0].out_features)
        return loss_fn(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.log("loss", loss_fn(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> dict[str, Any]:
        bias = [p for name, p in self.named_parameters() if name.endswith("bias")]
        rest = [p for name, p in self.named_parameters() if not name.endswith("bias")]
        optimizer = torch.optim.Adam([{"params": rest, "weight_decay": 1e-3}, {"params": bias}], lr=self.rate)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)}


def data(shuffle: bool = False, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(24, 6, generator=generator), torch.arange(24) % 3
    return DataLoader(TensorDataset(x + y[:, None], y), batch_size=8, shuffle=shuffle, **options)


def trainer(epochs: int, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False,
        **{"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks), **options},
    )  # fmt: skip


def every_epoch(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=1, **options)


def run(
    folder: Path, epochs: int = 4, resumed: Path | None = None, **options: Any
) -> tuple[Classifier, Prune, Trainer]:
    prune = Prune(loss_fn, **{"epoch": 2, "network": "net", "keep_params": 0.5, **options})
    module = Classifier()
    ran = trainer(epochs, prune, every_epoch(folder))
    ran.fit(module, data(), ckpt_path=resumed)
    return module, prune, ran


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_training_goes_on_with_the_smaller_module(tmp_path: Path) -> None:
    module, prune, ran = run(tmp_path)
    assert prune.plan is not None
    assert prune.report is not None
    assert module.seen[:6] == [16] * 6  # three batches an epoch
    assert len(set(module.seen[6:])) == 1
    assert module.seen[-1] < 16
    assert ran.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.7**4)
    assert {id(p) for g in ran.optimizers[0].param_groups for p in g["params"]} == {id(p) for p in module.parameters()}
    for parameter, state in ran.optimizers[0].state.items():
        assert state["exp_avg"].shape == parameter.shape


def test_it_cuts_as_prune_does_before_the_epoch(tmp_path: Path) -> None:
    """The uncut module of the checkpoint before, pruned by hand on the same data."""

    class Stop(Callback):
        small: nn.Module

        def on_train_batch_start(self, _: Trainer, module: LightningModule, *__: Any) -> None:
            if module.current_epoch == 2 and not hasattr(self, "small"):
                self.small = copy.deepcopy(module.net)

    seen, prune = Stop(), Prune(loss_fn, epoch=2, network="net", keep_params=0.5)
    trainer(3, prune, seen, every_epoch(tmp_path)).fit(Classifier(), data())
    before = Classifier()
    before.load_state_dict(torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"])
    expected, report = fk.prune(before.net, list(data()), loss_fn, keep_params=0.5, progress=False)
    assert report.plan is not None
    assert set(expected.state_dict()) - set(report.plan.shapes) == {"2.bias"}  # compensation adds one
    assert same(seen.small, expected)


class Uncopied(list[Any]):
    def __deepcopy__(self, _: Any) -> None:
        raise AssertionError("the data are copied")


def test_the_whole_module_is_copied_without_what_the_callback_holds() -> None:
    module = Classifier()
    trainer(1, Prune(loss_fn, keep_params=0.5, loader=Uncopied(data()))).fit(module, data())
    assert module.net[0].out_features < 16


@pytest.mark.parametrize("network", ["net", ""])
@pytest.mark.parametrize("epoch", [1, 2, 3])  # the last epoch that the checkpoint has seen: before the cut, and after
def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path, network: str, epoch: int) -> None:
    whole, prune, ran = run(tmp_path / "whole", 5, network=network)
    again, resumed, ran_again = run(tmp_path / "again", 5, tmp_path / "whole" / f"epoch={epoch}.ckpt", network=network)
    assert same(whole, again)
    assert resumed.plan is not None
    assert prune.plan is not None
    assert [a.removed.tolist() for a in resumed.plan.axes] == [a.removed.tolist() for a in prune.plan.axes]
    first, second = (r.optimizers[0].state_dict() for r in (ran, ran_again))
    assert first["param_groups"] == second["param_groups"]
    for k, state in first["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(second["state"][k][n])) for n, v in state.items())


def test_before_the_first_epoch(tmp_path: Path) -> None:
    module, prune, _ = run(tmp_path, 1, epoch=0)
    assert prune.plan is not None
    assert set(module.seen) == {module.net[0].out_features}
    assert module.seen[0] < 16


def test_a_checkpoint_is_read_without_a_trainer(tmp_path: Path) -> None:
    module, prune, ran = run(tmp_path)
    ran.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    x = data().dataset.tensors[0]  # type: ignore[attr-defined]
    for given in (tmp_path / "epoch=3.ckpt", tmp_path / "weights.ckpt", torch.load(tmp_path / "epoch=3.ckpt")):
        found = Classifier()
        plans = restore(found, given)
        assert same(found, module)
        assert prune.plan is not None
        assert [p.shapes for p in plans] == [prune.plan.shapes]
        assert torch.equal(found(x), module(x))
        assert same(pickle.loads(pickle.dumps(found)), module)


def test_a_module_may_be_cut_in_several_runs(tmp_path: Path) -> None:
    module, _, _ = run(tmp_path / "first", 3)
    second = Prune(loss_fn, network="net", keep_params=0.7)
    ran = trainer(1, second)
    ran.fit(module, data())
    ran.save_checkpoint(tmp_path / "twice.ckpt")
    found = Classifier()
    assert len(restore(found, tmp_path / "twice.ckpt")) == 2
    assert same(found, module)
    resumed = Classifier()
    trainer(2, Prune(loss_fn, network="net", keep_params=0.7)).fit(resumed, data(), ckpt_path=tmp_path / "twice.ckpt")
    assert [p.shape for p in resumed.parameters()] == [p.shape for p in module.parameters()]


def test_validation_reads_a_checkpoint_too(tmp_path: Path) -> None:
    run(tmp_path)
    fresh = Classifier()
    other = Prune(loss_fn, network="net", keep_params=0.5)
    found = trainer(1, other).validate(fresh, data(), ckpt_path=tmp_path / "epoch=3.ckpt", verbose=False)
    assert fresh.net[0].out_features < 16
    restored = Classifier()
    restore(restored, tmp_path / "epoch=3.ckpt")
    assert found == trainer(1).validate(restored, data(), verbose=False)


def test_reading_the_data_leaves_the_run_s_own_alone(tmp_path: Path) -> None:
    """The same batches come in the same order, also of workers that stay, whether the module is pruned or not."""

    class Order(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], k: int) -> Tensor:
            self.order = [*getattr(self, "order", []), float(batch[0].sum())]
            return super().training_step(batch, k)

    for options in ({}, {"num_workers": 1, "persistent_workers": True}):
        orders = []
        for callbacks in ((), (Prune(loss_fn, network="net", keep_params=0.5, epoch=0),)):
            torch.manual_seed(0)
            module = Order()
            trainer(2, *callbacks).fit(module, data(shuffle=True, **options))
            orders.append(module.order)
        assert len(orders[0]) == 6
        assert orders[0] == orders[1]


def test_batches_come_as_the_module_gets_them() -> None:
    class Transfers(Classifier):
        def on_before_batch_transfer(self, batch: Any, _: int) -> Any:
            return {"x": batch[0], "y": batch[1]}

        def on_after_batch_transfer(self, batch: Any, _: int) -> Any:
            return batch["x"] * 2, batch["y"]

    class Spy(Prune):
        def _data(self, *given: Any) -> Any:
            self.read = super()._data(*given)
            return self.read

    spy = Spy(loss_fn, network="net", keep_params=0.5, batches=2)
    trainer(1, spy).fit(Transfers(), data())
    assert len(spy.read) == 2
    assert all(torch.equal(x, 2 * other) for (x, _), (other, _) in zip(spy.read, data(), strict=False))


def test_other_data_and_the_module_s_own_loss() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.body(x)
            return {"logits": logits} if labels is None else {"loss": loss_fn(logits, labels), "logits": logits}

    class Wrapped(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = Own()  # type: ignore[assignment]

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return self.net(*batch)["loss"]

    module = Wrapped()
    batches = [{"x": x, "labels": y} for x, y in data()]
    trainer(1, Prune(network="net", keep_params=0.5, loader=batches)).fit(module, data())
    assert module.net.body[0].out_features < 16


def test_options_are_looked_at_when_it_is_made() -> None:
    with pytest.raises(TypeError, match="did you mean keep_params"):
        Prune(loss_fn, keep_param=0.5)
    with pytest.raises(TypeError, match="inplace"):
        Prune(loss_fn, keep_params=0.5, inplace=True)
    for options in ({}, {"keep_params": 2.0}, {"keep_params": 0.5, "tod": 0.1}, {"keep_params": 0.5, "epoch": -1},
                    {"keep_params": 0.5, "batches": 0}, {"keep_params": 0.5, "network": 3},
                    {"keep_params": 0.5, "round_to": 0}, {"keep_params": 0.5, "compensate": "much"},
                    {"keep_params": 0.5, "iterations": 0}, {"tod": 0.1, "iterations": 2},
                    {"keep_params": 0.5, "loader": 3}):  # fmt: skip
        with pytest.raises(fk.InputError):
            Prune(loss_fn, **options)
    with pytest.raises(fk.InputError, match="loss_fn"):
        Prune(3, keep_params=0.5)  # type: ignore[arg-type]


def test_what_a_run_cannot_bear_is_refused() -> None:
    made = Prune(loss_fn, network="nett", keep_params=0.5)
    with pytest.raises(fk.InputError, match=r"no module of Classifier.*net"):
        trainer(1, made).fit(Classifier(), data())
    two = [Prune(loss_fn, network="net", keep_params=0.5) for _ in range(2)]
    with pytest.raises(fk.InputError, match="two Prune"):
        trainer(1, *two).fit(Classifier(), data())
    module = Classifier()
    state = copy.deepcopy(module.state_dict())
    with pytest.raises(fk.InputError, match="WeightAveraging"):
        trainer(1, Prune(loss_fn, network="net", keep_params=0.5), WeightAveraging()).fit(module, data())
    assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(fk.InputError, match="once only"):
        trainer(1, Prune(loss_fn, network="net", keep_params=0.5)).fit(Classifier(), Once())
    with pytest.raises(fk.InputError, match="several loaders"):
        trainer(1, Prune(loss_fn, network="net", keep_params=0.5)).fit(Classifier(), {"a": data(), "b": data()})


def test_several_processes_and_wrapped_modules_are_refused() -> None:
    module, made = Classifier(), Prune(loss_fn, network="net", keep_params=0.5)
    many: Any = SimpleNamespace(callbacks=[made], world_size=2)
    with pytest.raises(fk.InputError, match="this trainer runs 2"):
        made.setup(many, module, "fit")
    wrapped: Any = SimpleNamespace(current_epoch=0, strategy=SimpleNamespace(model=nn.Sequential(module)))
    with pytest.raises(fk.InputError, match="SimpleNamespace wraps the module in a Sequential"):
        made.on_train_epoch_start(wrapped, module)


class Adafactor(Classifier):
    """A row and a column for every matrix."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adafactor(self.parameters(), lr=0.01)


def test_state_that_cannot_be_cut_is_said() -> None:
    module = Adafactor()
    with pytest.warns(UserWarning, match=r"state of net\.0\.weight.* starts anew"):
        trainer(2, Prune(loss_fn, network="net", epoch=1, keep_params=0.5)).fit(module, data())
    assert module.net[0].out_features < 16


class Once:
    """Data that can be read a single time."""

    def __init__(self) -> None:
        self._batches = iter(list(data()))

    def __iter__(self) -> Once:
        return self

    def __next__(self) -> Any:
        return next(self._batches)


def test_checkpoints_of_another_state_are_refused(tmp_path: Path) -> None:
    module, _, ran = run(tmp_path)
    with pytest.raises(fk.InputError, match="before it was cut"):
        ran.validate(module, data(), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    other, _, _ = run(tmp_path / "other", keep_params=0.8)
    with pytest.raises(fk.InputError, match="another cut"):
        restore(other, tmp_path / "epoch=3.ckpt")
    with pytest.raises(fk.InputError, match="load_from_checkpoint of Classifier"):
        restore(Classifier(), tmp_path / "epoch=1.ckpt")
    found = torch.load(tmp_path / "epoch=3.ckpt")
    found["fairkern"][0]["plan"] = found["fairkern"][0]["plan"].replace('"dim": 0', '"dim": 1', 1)
    with pytest.raises(fk.ArtefactError):
        restore(Classifier(), found)
    with pytest.raises(fk.ArtefactError, match="did not write"):
        restore(Classifier(), {"fairkern": [3], "state_dict": {}})


def test_a_part_of_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": Classifier().state_dict()}, tmp_path / "whole.ckpt")
    written = (tmp_path / "whole.ckpt").read_bytes()
    for length in (0, 7, len(written) // 2):
        (tmp_path / "part.ckpt").write_bytes(written[:length])
        with pytest.raises(fk.ArtefactError, match=r"part\.ckpt is no checkpoint that torch can read"):
            restore(Classifier(), tmp_path / "part.ckpt")
    with pytest.raises(FileNotFoundError):
        restore(Classifier(), tmp_path / "none.ckpt")


def test_an_epoch_that_never_comes_is_said() -> None:
    prune = Prune(loss_fn, epoch=3, network="net", keep_params=0.5)
    with pytest.warns(UserWarning, match=r"Prune has cut nothing: the run ended before epoch 3"):
        prune.on_train_end(SimpleNamespace(), Classifier())
