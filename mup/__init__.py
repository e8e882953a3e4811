"""Maximal Update Parametrization (muP) for any torch model: base shapes, init, readouts, optimizers, checks.

    import mup
    mup.set_base_shapes(model, base_model, delta=delta_model)
    optimizer = mup.MuAdamW(model, lr=1e-3)

A drop-in replacement for the `mup` package of Yang et al., with its rules as data (mup.rules), a static audit and a
verdict on coordinate checks.
"""

from mup import coord_check, infshape, init, layer, optim, rules, schedule, shape
from mup.coord_check import coord_records, get_coord_data, plot_coord_data, plot_verdict
from mup.infshape import InfDim, InfShape, ShapeError, zip_infshape
from mup.init import (
    constant_std_init_,
    eye_,
    kaiming_normal_,
    kaiming_uniform_,
    normal_,
    ones_,
    trunc_normal_,
    uniform_,
    xavier_normal_,
    xavier_uniform_,
)
from mup.layer import (
    MuOutConv1d,
    MuOutConv2d,
    MuOutConv3d,
    MuOutConvTranspose1d,
    MuOutConvTranspose2d,
    MuOutConvTranspose3d,
    MuOutput,
    MuReadout,
    MuSharedReadout,
    rescale_linear_bias,
)
from mup.optim import MuAdam, MuAdamW, MuSGD, param_groups, process_param_groups
from mup.roles import Declaration, Part, attach, declare
from mup.rules import (
    Options,
    Role,
    Scaling,
    attention_scale,
    depth_scaling,
    parameter_scaling,
    readout_mult,
)
from mup.schedule import MuScheduler, Scheduler
from mup.shape import (
    ForgottenDimensionWarning,
    apply_infshapes,
    assert_hidden_size_inf,
    clear_dims,
    get_infshapes,
    get_shapes,
    load_base_shapes,
    make_base_shapes,
    read_comments,
    save_base_shapes,
    set_base_shapes,
    zip_infshapes,
)
from mup.slopes import Thresholds, Verdict, verdict
from mup.static_audit import Audit, AuditRow, attention_scales, audit

__version__ = "2.0.0"

__all__ = [
    "Audit",
    "AuditRow",
    "Declaration",
    "ForgottenDimensionWarning",
    "InfDim",
    "InfShape",
    "MuAdam",
    "MuAdamW",
    "MuOutConv1d",
    "MuOutConv2d",
    "MuOutConv3d",
    "MuOutConvTranspose1d",
    "MuOutConvTranspose2d",
    "MuOutConvTranspose3d",
    "MuOutput",
    "MuReadout",
    "MuSGD",
    "MuScheduler",
    "MuSharedReadout",
    "Options",
    "Part",
    "Role",
    "Scaling",
    "Scheduler",
    "ShapeError",
    "Thresholds",
    "Verdict",
    "apply_infshapes",
    "assert_hidden_size_inf",
    "attach",
    "attention_scale",
    "attention_scales",
    "audit",
    "clear_dims",
    "constant_std_init_",
    "coord_check",
    "coord_records",
    "declare",
    "depth_scaling",
    "eye_",
    "get_coord_data",
    "get_infshapes",
    "get_shapes",
    "infshape",
    "init",
    "kaiming_normal_",
    "kaiming_uniform_",
    "layer",
    "load_base_shapes",
    "make_base_shapes",
    "normal_",
    "ones_",
    "optim",
    "param_groups",
    "parameter_scaling",
    "plot_coord_data",
    "plot_verdict",
    "process_param_groups",
    "read_comments",
    "readout_mult",
    "rescale_linear_bias",
    "rules",
    "save_base_shapes",
    "schedule",
    "set_base_shapes",
    "shape",
    "trunc_normal_",
    "uniform_",
    "verdict",
    "xavier_normal_",
    "xavier_uniform_",
    "zip_infshape",
    "zip_infshapes",
]
