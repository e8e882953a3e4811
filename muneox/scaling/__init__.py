"""Scaling laws: ladders of runs, fits and forecasts with intervals."""

from muneox.scaling.annealing import AnnealingLaw, fit_annealing
from muneox.scaling.forecast import Forecast, Target, forecast_size, forecast_surface
from muneox.scaling.ladder import Point, Selection, read_points
from muneox.scaling.power_law import PowerLaw, fit_power_law, sample_power_law
from muneox.scaling.surface import Surface, fit_surface, sample_surface

__all__ = [
    "AnnealingLaw",
    "Forecast",
    "Point",
    "PowerLaw",
    "Selection",
    "Surface",
    "Target",
    "fit_annealing",
    "fit_power_law",
    "fit_surface",
    "forecast_size",
    "forecast_surface",
    "read_points",
    "sample_power_law",
    "sample_surface",
]
