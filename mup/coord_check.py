"""Coordinate checks: the size of activations, and of their change in training, as a function of width.

`coord_records` and `verdict` judge a parametrization. `get_coord_data` and `plot_coord_data` are the functions of the
original package. pandas, matplotlib and tqdm are imported only when they are used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mup import optim
from mup.bsh import StrPath
from mup.plot import plot_coord_data, plot_verdict
from mup.records import FDICT, Coordinates, Statistic, convert_fdict, cov, covoffdiag, hooked, tensors_of
from mup.slopes import Row, Thresholds, Verdict, verdict

__all__ = [
    "FDICT",
    "Row",
    "Thresholds",
    "Verdict",
    "convert_fdict",
    "coord_records",
    "cov",
    "covoffdiag",
    "example_plot_coord_check",
    "get_coord_data",
    "plot_coord_data",
    "plot_verdict",
    "verdict",
]

Models = Mapping[Any, Callable[[], nn.Module]]
TrainStep = Callable[[nn.Module, Any, Any], Any]
"""(model, optimizer, batch) -> any: one whole training step, from the forward pass to optimizer.step."""


# ---- the check with a verdict ---------------------------------------------------------------------------------


def coord_records(
    models: Models,
    batch: Any,
    optimizer: Callable[[nn.Module], Any],
    *,
    train_step: TrainStep | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    steps: Sequence[int] = (1, 4),
    seeds: Iterable[int] = (0, 1, 2),
    keep: Callable[[str], bool] | None = None,
    axis: str = "width",
) -> list[dict[str, Any]]:
    """Train each model on one fixed batch and return the records for `verdict`.

    models: width -> function that builds the model. Only one model exists at a time.
    batch: argument of train_step and forward; by default (inputs, integer targets) with cross-entropy.
    optimizer: model -> optimizer.
    forward: runs the model to measure it; by default model(inputs).
    steps: steps at which the change is measured. axis: name of the column with the keys of `models`.
    Returns records of `axis`, seed, module, t, statistic, value, may_vanish: "mean_abs" (mean |x|) at t = 0, and
    "rms_delta" (RMS of x_t - x_0 over batch and coordinates) at the steps.
    """
    step = train_step or _cross_entropy_step
    run = forward or (lambda model, batch: model(batch[0]))
    records: list[dict[str, Any]] = []
    for seed in seeds:
        for width, build in models.items():
            torch.manual_seed(seed)
            model = build()
            model.train()
            opt = optimizer(model)
            coordinates = Coordinates(model, functools.partial(run, model, batch), keep=keep)
            for t in range(max(steps) + 1):
                if t > 0:
                    step(model, opt, batch)
                if t == 0 or t in steps:
                    records += [{axis: width, "seed": seed, **record} for record in coordinates.measure(t)]
            del model, opt, coordinates
    return records


def _cross_entropy_step(model: nn.Module, optimizer: Any, batch: Any) -> None:
    inputs, targets = batch
    optimizer.zero_grad()
    logits = model(inputs)
    F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)).backward()
    optimizer.step()


# ---- API of the original package ------------------------------------------------------------------------------


def get_coord_data(
    models: Models,
    dataloader: Iterable[Any],
    optimizer: str | Callable[[nn.Module], Any] = "sgd",
    lr: float | None = None,
    mup: bool = True,
    filter_trainable_by_name: Callable[[str], bool] | None = None,
    **kwargs: Any,
) -> Any:
    """Train the models and record statistics of their activations in a pandas DataFrame.

    models: width -> function that builds the model.
    dataloader: batches; with fix_data only the first is used.
    optimizer: sgd, adam or adamw (in muP with `mup`, otherwise torch's), or model -> optimizer.
    lr: by default 0.1 for sgd, otherwise 1e-3.
    filter_trainable_by_name: whether to train the parameter with this name.
    kwargs: arguments of `_get_coord_data`.
    Returns the columns width, module, t (1 is before the first update), seed, one per statistic, optimizer, lr.
    """
    if lr is None:
        lr = 0.1 if optimizer == "sgd" else 1e-3
    data = _get_coord_data(models, dataloader, _optimizer_of(optimizer, lr, mup, filter_trainable_by_name), **kwargs)
    data["optimizer"] = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "custom")
    data["lr"] = lr
    return data


def _optimizer_of(
    optimizer: str | Callable[[nn.Module], Any], lr: float, mup: bool, trainable: Callable[[str], bool] | None
) -> Callable[[nn.Module], Any]:
    if callable(optimizer):
        return optimizer
    in_mup = {"sgd": optim.MuSGD, "adam": optim.MuAdam, "adamw": optim.MuAdamW}
    in_sp = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if optimizer not in in_mup:
        raise ValueError(f"optimizer: expected {', '.join(in_mup)} or a function of the model, got {optimizer!r}")
    cls: Callable[..., Any] = (in_mup if mup else in_sp)[optimizer]
    return lambda model: cls([p for name, p in model.named_parameters() if not trainable or trainable(name)], lr=lr)


def _get_coord_data(
    models: Models,
    dataloader: Iterable[Any],
    optcls: Callable[[nn.Module], Any],
    nsteps: int = 3,
    dict_in_out: bool = False,
    flatten_input: bool = False,
    flatten_output: bool = False,
    output_name: str = "loss",
    lossfn: str | Callable[[Tensor, Tensor], Tensor] = "xent",
    filter_module_by_name: Callable[[str], bool] | None = None,
    fix_data: bool = True,
    cuda: bool = True,
    nseeds: int = 1,
    output_fdict: Mapping[str, str | Statistic] | None = None,
    input_fdict: Mapping[str, str | Statistic] | None = None,
    param_fdict: Mapping[str, str | Statistic] | None = None,
    show_progress: bool = True,
    train_step: TrainStep | None = None,
    one_hot_target: bool = False,
) -> Any:
    """Train and record, given an optimizer. This is the main part of get_coord_data.

    nsteps: number of training steps.
    dict_in_out: batches and outputs are dicts, as in Hugging Face. The loss is the entry `output_name`, or the first
    element if the output is a tuple.
    flatten_input, flatten_output: reshape to [batch, -1] and [-1, classes].
    lossfn: xent, mse, nll, l1 or a function.
    cuda: use a GPU if there is one.
    nseeds: number of repetitions.
    *_fdict: name -> statistic (a name in FDICT, or a function) of outputs (default l1), inputs and parameters.
    train_step: a training step (model, optimizer, batch) of the caller, which replaces the default step.
    """
    import pandas as pd

    fdicts = [convert_fdict({"l1": "l1"} if output_fdict is None else output_fdict)]
    fdicts += [convert_fdict(input_fdict or {}), convert_fdict(param_fdict or {})]
    batches = [next(iter(dataloader))] * nsteps if fix_data else dataloader
    device = "cuda" if cuda and torch.cuda.is_available() else "cpu"

    def default_step(model: nn.Module, optimizer: Any, batch: Any) -> None:
        if dict_in_out:
            output = model(**batch)
            loss = output[output_name] if isinstance(output, Mapping) else output[0]
        else:
            loss = _loss(model, batch, flatten_input, flatten_output, lossfn, one_hot_target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    records: list[dict[str, Any]] = []
    with _progress(nseeds * len(models), show_progress) as advance:
        for seed in range(nseeds):
            torch.manual_seed(seed)
            for width, build in models.items():
                model = build().train().to(device)
                optimizer = optcls(model)
                for t, batch in zip(range(1, nsteps + 1), batches):
                    cell = {"width": width, "t": t, "seed": seed}
                    with hooked(model, _statistics_sink(records, cell, fdicts), filter_module_by_name):
                        (train_step or default_step)(model, optimizer, _to(batch, device))
                del model, optimizer
                advance()
    return pd.DataFrame(records)


def _statistics_sink(
    records: list[dict[str, Any]], cell: Mapping[str, Any], fdicts: Sequence[Mapping[str, Statistic]]
) -> Callable[[str, nn.Module, Any, Any], None]:
    output_fdict, input_fdict, param_fdict = fdicts

    def add(module: str, x: Tensor, fdict: Mapping[str, Statistic]) -> None:
        if fdict:
            width, t, seed = cell["width"], cell["t"], cell["seed"]
            values = {key: float(f(x)) for key, f in fdict.items()}
            records.append({"width": width, "module": module, "t": t, "seed": seed, **values})

    def sink(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for key, x in tensors_of(output, name if isinstance(output, Tensor) else f"{name}:out"):
            add(key, x, output_fdict)
        for key, x in tensors_of(inputs, f"{name}:in"):
            add(key, x, input_fdict)
        if param_fdict:
            for own, p in module.named_parameters():
                add(f"{name}:param[{own}]", p.detach(), param_fdict)

    return sink


def _loss(
    model: nn.Module,
    batch: Any,
    flatten_input: bool,
    flatten_output: bool,
    lossfn: str | Callable[[Tensor, Tensor], Tensor],
    one_hot_target: bool,
) -> Tensor:
    data, target = batch
    output = model(data.reshape(len(data), -1) if flatten_input else data)
    if flatten_output:
        output = output.reshape(-1, output.shape[-1])
    if lossfn == "mse" or one_hot_target:
        target = F.one_hot(target, num_classes=output.shape[-1]).to(output.dtype)
    known: dict[str, Callable[..., Tensor]] = {
        "xent": F.cross_entropy,
        "mse": F.mse_loss,
        "nll": F.nll_loss,
        "l1": F.l1_loss,
    }
    if isinstance(lossfn, str) and lossfn not in known:
        raise ValueError(f"lossfn: expected {', '.join(known)} or a function, got {lossfn!r}")
    return (known[lossfn] if isinstance(lossfn, str) else lossfn)(output, target)


def _to(batch: Any, device: str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _to(item, device) for key, item in batch.items()}
    return tuple(_to(item, device) for item in batch) if isinstance(batch, (tuple, list)) else batch


class _progress:
    """A tqdm progress bar, if requested and installed."""

    def __init__(self, total: int, show: bool) -> None:
        self.bar: Any = None
        if show:
            try:
                from tqdm import tqdm

                self.bar = tqdm(total=total)
            except ImportError:
                pass

    def __enter__(self) -> Callable[[], None]:
        return (lambda: None) if self.bar is None else (lambda: self.bar.update(1))

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.close()


def example_plot_coord_check(
    arch: str = "mlp",
    optimizer: str = "sgd",
    lr: float | None = None,
    widths: Sequence[int] | None = None,
    mup: bool = True,
    nsteps: int = 3,
    nseeds: int = 10,
    plotdir: StrPath = "",
    batchnorm: bool = False,
    batch_size: int = 1,
    init: str = "kaiming_fan_in_normal",
    download_cifar: bool = True,
    legend: str | bool = "full",
    dict_in_out: bool = False,
    name_contains: str | None = None,
    name_not_contains: str | None = None,
) -> Any:
    """Plot the coordinate check of an example MLP or CNN. Returns the matplotlib figure.

    The images are random, with the shape of CIFAR-10. A coordinate check needs no real data, so nothing is
    downloaded, and download_cifar has no effect.
    """
    from mup.example_models import lazy_models, random_images

    if widths is None:
        widths = [2**i for i in range(7, 14)] if arch == "mlp" else [2**i for i in range(3, 10)]
    batch_size = max(batch_size, 5) if batchnorm else batch_size
    models = lazy_models(arch, widths, mup=mup, batchnorm=batchnorm, init=init, dict_in_out=dict_in_out)
    data = random_images(batch_size, as_dict=dict_in_out, flatten=arch == "mlp" and dict_in_out)
    flatten = arch == "mlp" and not dict_in_out
    kwargs: dict[str, Any] = {
        "flatten_input": flatten,
        "nseeds": nseeds,
        "nsteps": nsteps,
        "dict_in_out": dict_in_out,
    }
    df = get_coord_data(models, [data], optimizer=optimizer, lr=lr, mup=mup, show_progress=False, **kwargs)
    if lr is None:
        lr = 0.1 if optimizer == "sgd" else 1e-3
    kind = "mup" if mup else "sp"
    file = f"{kind}_{arch}_{optimizer}_lr{lr}_nseeds{nseeds}_bn{int(batchnorm)}_coord.png"
    return plot_coord_data(
        df,
        legend=legend,
        name_contains=name_contains,
        name_not_contains=name_not_contains,
        save_to=os.path.join(plotdir, file),
        suptitle=f"{kind} {arch} {optimizer} lr={lr} batchnorm={batchnorm} seeds={nseeds}",
        face_color=None if mup else "xkcd:light grey",
    )
