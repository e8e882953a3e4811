"""The schedule against those of torch and GPT-NeoX; the scheduler always sets group lr = base rate x lr_mult."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.errors import CheckpointError, ConfigError
from megatron.training.learning_rates import DecayStyle, LearningRateSchedule, Scheduler

STYLES = get_args(DecayStyle)


@st.composite
def schedules(draw):
    decay_iters = draw(st.integers(1, 200))
    warmup_iters = draw(st.integers(0, decay_iters))
    lr = draw(st.floats(1e-6, 1.0))
    return LearningRateSchedule(
        lr=lr,
        min_lr=draw(st.sampled_from((0.0, lr / 16, lr / 3, lr))),
        decay_iters=decay_iters,
        warmup_iters=warmup_iters,
        decay_style=draw(st.sampled_from(STYLES)),
        warmup_style=draw(st.sampled_from(("linear", "inverse_log"))),
        cooldown_iters=draw(st.integers(0, decay_iters - warmup_iters)),
        cooldown_style=draw(st.sampled_from(("linear", "cosine", "sqrt"))),
    )


def optimizer(mults):
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "name": name, "lr_mult": mult, "lr": 123.0}
        for name, mult in mults.items()
    ]
    return torch.optim.SGD(groups, lr=123.0)


def rates(schedule, n):
    return [schedule(k) for k in range(n)]


def torch_rates(scheduler, opt, n):
    values = []
    for _ in range(n):
        values.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return values


# --- the schedule ---


@given(schedules())
def test_all_rates_are_positive_and_in_bounds(schedule):
    values = rates(schedule, schedule.decay_iters + 20)
    assert all(0 <= value <= schedule.lr for value in values)
    assert all(value > 0 for value in values[: schedule.decay_iters]), "an update with rate 0 trains nothing"
    assert all(value >= schedule.min_lr for value in values[schedule.warmup_iters :])


@given(schedules())
def test_rates_increase_in_warmup_and_never_afterwards(schedule):
    warmup = rates(schedule, schedule.warmup_iters)
    assert all(a < b for a, b in zip(warmup, warmup[1:], strict=False))
    if warmup:
        assert warmup[-1] == schedule.lr
    rest = [schedule(schedule.warmup_iters + k) for k in range(schedule.decay_iters + 20)]
    assert all(b <= a * (1 + 1e-12) for a, b in zip(rest, rest[1:], strict=False))


@given(schedules())
def test_the_decay_ends_at_min_lr_and_stays_there(schedule):
    end = schedule(schedule.decay_iters)
    if schedule.decay_style in ("linear", "cosine") or (schedule.decay_style == "wsd" and schedule.cooldown_iters):
        assert end == pytest.approx(schedule.min_lr, abs=1e-12 * schedule.lr)
        assert schedule(schedule.decay_iters + 7) == end


def neox_rate(k, *, lr, min_lr, warmup, end, style):
    """GPT-NeoX's AnnealingLR, reimplemented from its formulas."""
    if warmup > 0 and k <= warmup:
        return lr * k / warmup
    p = (k - warmup) / (end - warmup)
    decayed = {
        "constant": lr,
        "linear": lr * (1 - p),
        "cosine": min_lr + (lr - min_lr) / 2 * (math.cos(math.pi * p) + 1),
        "exponential": lr * math.exp(-0.693 * p),
    }[style]
    return max(decayed, min_lr)


@pytest.mark.parametrize("style", ["constant", "linear", "cosine", "exponential"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_equals_neox_after_warmup_and_is_one_update_ahead_before(style, warmup):
    facts = {"lr": 3e-3, "min_lr": 3e-4, "style": style}
    schedule = LearningRateSchedule(lr=3e-3, min_lr=3e-4, decay_iters=100, warmup_iters=warmup, decay_style=style)
    for k in range(100):
        neox_k = k + 1 if k < warmup else k
        expected = neox_rate(neox_k, warmup=warmup, end=100, **facts)
        assert schedule(k) == pytest.approx(expected, rel=1e-12)


def test_inverse_log_warmup_is_that_of_mu_scaling_shifted_by_one():
    warmup = 64
    schedule = LearningRateSchedule(
        lr=1.0, decay_iters=100, warmup_iters=warmup, decay_style="linear", warmup_style="inverse_log"
    )
    for k in range(warmup - 1):
        longer = math.log(k + 2) / math.log(warmup + 1)  # Mu-scaling at step k + 1 of a warmup with one more update
        assert schedule(k) == pytest.approx(longer, rel=1e-12)
    assert schedule(warmup // 8) > 0.5, "it increases faster than linear warmup"


def test_warmup_equals_torchs_linear_lr():
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    oracle = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1 / 20, total_iters=19)
    schedule = LearningRateSchedule(lr=0.5, decay_iters=40, warmup_iters=20, decay_style="constant")
    assert rates(schedule, 40) == pytest.approx(torch_rates(oracle, opt, 40), rel=1e-9)


def test_linear_decay_equals_torchs_linear_lr():
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    oracle = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1.0, end_factor=0.0, total_iters=50)
    schedule = LearningRateSchedule(lr=0.5, decay_iters=50, decay_style="linear")
    assert rates(schedule, 60) == pytest.approx(torch_rates(oracle, opt, 60), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("min_lr", [0.0, 0.01])
def test_cosine_equals_torchs_cosine_annealing(min_lr):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=50, eta_min=min_lr)
    schedule = LearningRateSchedule(lr=0.5, min_lr=min_lr, decay_iters=50, decay_style="cosine")
    assert rates(schedule, 51) == pytest.approx(torch_rates(oracle, opt, 51), rel=1e-9, abs=1e-12)


def test_wsd_with_linear_cooldown_equals_torchs_sequence():
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    warmup = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1 / 10, total_iters=9)
    stable = torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0, total_iters=1)
    cooldown = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1.0, end_factor=0.1, total_iters=20)
    oracle = torch.optim.lr_scheduler.SequentialLR(opt, [warmup, stable, cooldown], milestones=[10, 80])
    schedule = LearningRateSchedule(
        lr=0.5, min_lr=0.05, decay_iters=100, warmup_iters=10, decay_style="wsd", cooldown_iters=20
    )
    assert rates(schedule, 110) == pytest.approx(torch_rates(oracle, opt, 110), rel=1e-9)


def test_sqrt_cooldown_reaches_half_after_a_quarter():
    schedule = LearningRateSchedule(
        lr=1.0, decay_iters=100, decay_style="wsd", cooldown_iters=40, cooldown_style="sqrt"
    )
    assert schedule(59) == schedule(60) == 1.0
    assert schedule(70) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"decay_style": "cosin"}, "decay_style"),
        ({"warmup_style": "log"}, "warmup_style"),
        ({"cooldown_style": "cube"}, "cooldown_style"),
        ({"min_lr": 2.0}, "min_lr"),
        ({"min_lr": -1.0}, "min_lr"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"decay_iters": 0}, "decay_iters"),
        ({"warmup_iters": -1}, "warmup_iters"),
        ({"warmup_iters": 101}, r"warmup \(101\) .* decay_iters \(100\)"),
        ({"decay_style": "wsd", "warmup_iters": 50, "cooldown_iters": 51}, r"cooldown \(51\)"),
    ],
)
def test_inconsistent_values_raise(bad, names):
    with pytest.raises(ConfigError, match=names):
        LearningRateSchedule(**({"lr": 1.0, "decay_iters": 100} | bad))


# --- the scheduler ---

POWERS = {"input": 1.0, "hidden.r4": 0.25, "block.vector": 2.0, "output": 0.125}


@given(schedules())
def test_group_ratios_are_exactly_lr_mult_at_every_step(schedule):
    opt = optimizer(POWERS)
    scheduler = Scheduler(opt, schedule)
    for k in range(schedule.decay_iters + 5):
        base = schedule(k)
        for group in opt.param_groups:
            assert group["lr"] == base * group["lr_mult"]
        assert scheduler.get_last_lr() == scheduler.get_lr() == [group["lr"] for group in opt.param_groups]
        assert opt.param_groups[0]["lr"] == 4 * opt.param_groups[1]["lr"] == scheduler.get_base_lr()
        scheduler.step()


@given(schedules(), st.data())
def test_resume_at_any_step_equals_the_uninterrupted_run(schedule, data):
    at = data.draw(st.integers(0, schedule.decay_iters + 5))
    whole = Scheduler(optimizer(POWERS), schedule)
    for _ in range(at):
        whole.step()
    resumed = Scheduler(optimizer(POWERS), schedule)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for _ in range(10):
        assert resumed.get_last_lr() == whole.get_last_lr()
        whole.step()
        resumed.step()


SCHEDULE = LearningRateSchedule(lr=1.0, min_lr=0.1, decay_iters=100, warmup_iters=10, decay_style="cosine")


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    first = Scheduler(optimizer(POWERS), SCHEDULE)
    first.step(17)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Scheduler(optimizer(POWERS), SCHEDULE)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.num_steps == 17 and second.get_last_lr() == first.get_last_lr()


@pytest.mark.parametrize(
    "saved",
    [
        POWERS | {"hidden.r4": 0.5},
        {name: mult for name, mult in POWERS.items() if name != "output"},
        POWERS | {"router": 1.0},
    ],
)
@pytest.mark.parametrize("option", [None, "override_lr_scheduler", "use_checkpoint_lr_scheduler"])
def test_a_state_of_other_multipliers_is_refused_and_changes_nothing(saved, option):
    source = Scheduler(optimizer(saved), SCHEDULE)
    source.step(30)
    target = Scheduler(optimizer(POWERS), SCHEDULE, **({option: True} if option else {}))
    target.step(3)
    before = target.get_last_lr()
    with pytest.raises(CheckpointError, match="hidden.r4|output|router"):
        target.load_state_dict(source.state_dict())
    assert target.num_steps == 3 and target.get_last_lr() == before


def test_another_schedule_raises_unless_an_option_selects_one():
    other = dataclasses.replace(SCHEDULE, lr=0.5, decay_iters=200)
    source = Scheduler(optimizer(POWERS), SCHEDULE)
    source.step(42)
    state = source.state_dict()
    with pytest.raises(CheckpointError, match="decay_iters: checkpoint 100, configuration 200"):
        Scheduler(optimizer(POWERS), other).load_state_dict(state)

    override = Scheduler(optimizer(POWERS), other, override_lr_scheduler=True)
    override.load_state_dict(state)
    assert override.schedule == other and override.get_last_lr()[0] == other(42)

    from_checkpoint = Scheduler(optimizer(POWERS), other, use_checkpoint_lr_scheduler=True)
    from_checkpoint.load_state_dict(state)
    assert from_checkpoint.schedule == SCHEDULE and from_checkpoint.get_last_lr()[0] == SCHEDULE(42)

    with pytest.raises(ConfigError, match="override_lr_scheduler"):
        Scheduler(optimizer(POWERS), SCHEDULE, override_lr_scheduler=True, use_checkpoint_lr_scheduler=True)


@pytest.mark.parametrize("state", [{}, {"num_steps": 3}, {"num_steps": 3, "schedule": 5, "lr_mults": {}}])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(CheckpointError, match="learning-rate"):
        Scheduler(optimizer(POWERS), SCHEDULE).load_state_dict(state)


def test_an_optimizer_state_with_other_multipliers_raises():
    """torch's load_state_dict replaces the groups, including lr_mult."""
    opt = optimizer(POWERS)
    scheduler = Scheduler(opt, SCHEDULE)
    opt.load_state_dict(optimizer(POWERS | {"hidden.r4": 1.0}).state_dict())
    with pytest.raises(RuntimeError, match="hidden.r4"):
        scheduler.step()


def test_apply_restores_the_rates_after_loading_the_optimizer():
    opt = optimizer(POWERS)
    scheduler = Scheduler(opt, SCHEDULE)
    opt.load_state_dict(optimizer(POWERS).state_dict())
    assert opt.param_groups[1]["lr"] == 123.0
    scheduler.apply()
    assert opt.param_groups[1]["lr"] == SCHEDULE(0) / 4


@pytest.mark.parametrize("change", [{"lr_mult": 0.3}, {"name": "other"}, {"lr_mult": None}])
def test_a_group_changed_by_hand_raises(change):
    opt = optimizer(POWERS)
    scheduler = Scheduler(opt, SCHEDULE)
    opt.param_groups[1].update(change)
    with pytest.raises(RuntimeError, match="lr_mult"):
        scheduler.step()


@pytest.mark.parametrize(
    "change", [{"lr_mult": None}, {"lr_mult": math.nan}, {"lr_mult": -1.0}, {"name": "input"}, {"name": None}]
)
def test_groups_without_name_or_multiplier_are_refused_at_construction(change):
    opt = optimizer(POWERS)
    opt.param_groups[1].update(change)
    with pytest.raises(ValueError, match="parameter group"):
        Scheduler(opt, SCHEDULE)


def test_a_pipeline_stage_saves_the_multipliers_of_the_whole_model():
    stage = Scheduler(optimizer({"hidden.r4": 0.25}), SCHEDULE, lr_mults=POWERS)
    stage.step(5)
    whole = Scheduler(optimizer(POWERS), SCHEDULE)
    whole.load_state_dict(stage.state_dict())
    assert whole.num_steps == 5
    with pytest.raises(ValueError, match="have other multipliers"):
        Scheduler(optimizer({"hidden.r4": 0.5}), SCHEDULE, lr_mults=POWERS)
