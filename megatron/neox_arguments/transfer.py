"""Classify keys by their effect on hyperparameter transfer and on the recipe of a ladder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

TPV = "Tensor Programs V, arXiv:2203.03466"


class TransferClass(Enum):
    """The effect of a difference between proxy and target in a key."""

    MUST_MATCH = "must match"
    SHIFTS = "may shift the optimum"
    GROWS = "grows with the width"
    COMBINED = "compared together with other keys"
    FREE = "free"  # the key does not affect training


@dataclass(frozen=True)
class Transfer:
    """The class of a key, and why a difference matters, with the source of that claim."""

    kind: TransferClass
    why: str = ""
    source: str = ""


MUST_MATCH = Transfer(TransferClass.MUST_MATCH, "the two models are not from the same family", f"{TPV}, table 1")
TUNED = Transfer(
    TransferClass.MUST_MATCH, "it was tuned on the proxy; use the same value on the target", f"{TPV}, algorithm 1"
)
GROWS = Transfer(TransferClass.GROWS)
COMBINED = Transfer(TransferClass.COMBINED)
FREE = Transfer(TransferClass.FREE)


def must_match(why: str, source: str = f"{TPV}, table 1") -> Transfer:
    """Both runs must have the same value. `why`: what a difference means."""
    return Transfer(TransferClass.MUST_MATCH, why, source)


def shifts(why: str, source: str) -> Transfer:
    """A difference can move the optimal hyperparameters. `why`: how."""
    return Transfer(TransferClass.SHIFTS, why, source)


SCHEDULE = must_match("the shape of the schedule is part of what is tuned")
TOKENS = must_match("the losses are measured on different tokens")
DATA = shifts("the optimum depends on the training data", f"{TPV}, section 1: one task, many widths")
PRECISION = shifts("rounding limits the effect of Adam's eps and of small updates", "no published source; measure it")
REGULARISATION = shifts("regularisation depends on model and data size and does not transfer", f"{TPV}, table 1")


class Recipe(Enum):
    """Groups of compared runs. All runs of a group must have the same value of the key."""

    FAMILY = "runs at several widths and learning rates"
    MUP_FAMILY = "runs at several widths and learning rates, in muP"
    LADDER = "runs of a ladder over any axis"
    SIZE_LADDER = "runs of a ladder over the model's size"
    SEARCH = "trials of one search, for keys that do not affect transfer"


FAMILY, MUP_FAMILY, LADDER, SIZE_LADDER, SEARCH = Recipe
