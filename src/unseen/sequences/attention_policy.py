"""Attention policies by name: which keys a query sees, and how far away each of them seems to be."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from unseen.errors import InputError, UnseenWarning, nearest
from unseen.sequences.positions import Encoding

POLICIES = ("vanilla", "window", "mask-only", "ceiling-only", "interpolation", "ntk", "sink", "lm-infinite")


@dataclass(frozen=True)
class AttentionPolicy:
    """A change of the attention mask and of relative distances that touches no parameter.

    n_local         keys at distances 0 .. n_local - 1 are visible; None: all earlier keys
    n_global        the first n_global keys stay visible whatever their distance
    d_max           larger distances are read as d_max; None: no ceiling
    reindex         positions count within what is visible, so that starting tokens sit next to the window
    interpolation   positions are divided by this factor
    ntk             the base of rotary frequencies grows as for this length factor
    topk            middle keys that the last query also sees, in layers >= topk_first_layer, at topk_distance
    """

    name: str = "vanilla"
    n_local: int | None = None
    n_global: int = 0
    d_max: int | None = None
    reindex: bool = False
    interpolation: float = 1.0
    ntk: float = 1.0
    topk: int | None = None
    topk_distance: int = 0
    topk_first_layer: int = 4

    @property
    def cache_window(self) -> int | None:
        """Local rows that a cache must keep; None: everything (no window, or top-k looks into the middle)."""
        return self.n_local if self.topk is None else None

    def local(self, length: int) -> int:
        """Local keys that a query of a text of `length` tokens can see at most."""
        return length if self.n_local is None else min(self.n_local, length)

    def encoding(self, encoding: Encoding) -> Encoding:
        """The position encoding under this policy."""
        if self.interpolation != 1:
            encoding = encoding.interpolated(self.interpolation)
        return encoding.rebased(self.ntk) if self.ntk != 1 else encoding


def attention_policy(
    name: str,
    window: int,
    *,
    n_local: int | None = None,
    n_global: int = 10,
    d_max: int | None = None,
    factor: float | None = None,
    topk: int | None = None,
    topk_distance: int | None = None,
    topk_first_layer: int = 4,
) -> AttentionPolicy:
    """The policy of a given name for a model that was trained on `window` tokens.

    vanilla        all earlier keys at their true distance
    window         the last n_local keys (default: window)
    mask-only      these and the first n_global keys, at true distances
    ceiling-only   all earlier keys; distances above d_max (default: n_local) read as d_max
    lm-infinite    mask and ceiling (Han et al. 2024, arXiv 2308.16137)
    sink           first n_global and last n_local keys (default: window - n_global), positions counted within
                   these (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453)
    interpolation  positions divided by `factor`, the target length over `window`
    ntk            rotary base raised for `factor`

    topk (for lm-infinite) lets the last query see that many middle keys at distance topk_distance (default
    d_max / 2) in layers >= topk_first_layer. Raises InputError on unknown names and impossible sizes; warns
    when n_local exceeds the window, since such distances were never trained.
    """
    if name not in POLICIES:
        raise InputError(f"attention policy {name!r}", "is not known", nearest(name, POLICIES))
    if n_global < 0:
        raise InputError("n_global", f"is {n_global}", "Give 0 or more starting tokens, such as 10.")
    for label, value in (("n_local", n_local), ("d_max", d_max), ("topk", topk)):
        if value is not None and value < 1:
            raise InputError(label, f"is {value}", "Give a positive number of tokens.")
    if n_local is not None and n_local > window:
        warnings.warn(
            f"n_local {n_local} exceeds the {window} tokens that the model was trained on: "
            "distances it has never seen stay visible",
            UnseenWarning,
            stacklevel=2,
        )
    if topk is not None and name != "lm-infinite":
        raise InputError("topk", f"was given for policy {name!r}", "Only 'lm-infinite' retrieves keys.")
    if name == "vanilla":
        return AttentionPolicy(name)
    if name in ("interpolation", "ntk"):
        if factor is None or factor < 1:
            raise InputError("factor", f"is {factor}", f"{name!r} needs target length / window, 1 or more.")
        if name == "ntk":
            return AttentionPolicy(name, ntk=float(factor))
        return AttentionPolicy(name, interpolation=float(factor))
    if name == "sink":
        local = n_local or window - n_global
        if local < 1:
            raise InputError("n_global", f"is {n_global}, but the window has {window}", "Leave local tokens.")
        return AttentionPolicy(name, n_local=local, n_global=n_global, reindex=True)
    local = n_local or window
    ceiling = d_max or local
    if name == "window":
        return AttentionPolicy(name, n_local=local)
    if name == "mask-only":
        return AttentionPolicy(name, n_local=local, n_global=n_global)
    if name == "ceiling-only":
        return AttentionPolicy(name, d_max=ceiling)
    if ceiling < local - 1:
        raise InputError(
            "d_max",
            f"is {ceiling} with n_local {local}",
            "Give n_local - 1 or more: local keys stay.",
        )
    return AttentionPolicy(
        name,
        n_local=local,
        n_global=n_global,
        d_max=ceiling,
        topk=topk,
        topk_distance=topk_distance or max(ceiling // 2, 1),
        topk_first_layer=topk_first_layer,
    )
