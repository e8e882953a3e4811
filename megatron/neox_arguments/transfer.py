"""What a key means for the transfer of hyperparameters from a proxy to its target, and for a ladder's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

TPV = "Tensor Programs V, arXiv:2203.03466"


class TransferClass(Enum):
    """What follows where proxy and target differ in a key."""

    MUST_MATCH = "must match"
    SHIFTS = "may shift the optimum"
    GROWS = "grows with the width"
    COMBINED = "compared together with other keys"
    FREE = "free"  # the key changes nothing that is trained


@dataclass(frozen=True)
class Transfer:
    """A key's class, and for those that matter what follows from a difference and who says so."""

    kind: TransferClass
    why: str = ""
    source: str = ""


MUST_MATCH = Transfer(TransferClass.MUST_MATCH, "the two are not one family of models", f"{TPV}, table 1")
TUNED = Transfer(TransferClass.MUST_MATCH, "it was tuned on the proxy: carry it over unchanged", f"{TPV}, algorithm 1")
GROWS = Transfer(TransferClass.GROWS)
COMBINED = Transfer(TransferClass.COMBINED)
FREE = Transfer(TransferClass.FREE)


def must_match(why: str, source: str = f"{TPV}, table 1") -> Transfer:
    """The two runs must have the same value; `why` says what a difference means."""
    return Transfer(TransferClass.MUST_MATCH, why, source)


def shifts(why: str, source: str) -> Transfer:
    """A difference may move the best hyperparameters; `why` says how."""
    return Transfer(TransferClass.SHIFTS, why, source)


SCHEDULE = must_match("the shape of the schedule is part of what is tuned")
TOKENS = must_match("the losses are of different tokens")
DATA = shifts("the optimum belongs to the data that it was found on", f"{TPV}, section 1: one task, many widths")
PRECISION = shifts("rounding bounds from below what Adam's eps and small updates do", "no paper; measure it")
REGULARISATION = shifts("regularisation depends on model and data size and does not transfer", f"{TPV}, table 1")


class Recipe(Enum):
    """Runs that are compared with each other, and so must have the same value of a key."""

    FAMILY = "runs at several widths and learning rates"
    MUP_FAMILY = "such runs, in muP"
    LADDER = "runs of a ladder over any axis"
    SIZE_LADDER = "runs of a ladder over the model's size"
    SEARCH = "trials of one search, although the key is free in a transfer"


FAMILY, MUP_FAMILY, LADDER, SIZE_LADDER, SEARCH = Recipe
