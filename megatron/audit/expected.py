"""The values that a configuration must give, written a second time from the papers' equations.

This module is the audit's second source. It reads the keys of the user's configuration and imports nothing of this
project, so a mistake in the rules, in the plan or where the configuration is resolved cannot be a mistake here too.

Symbols: h hidden size, d head dimension, L layers; a subscript 0 marks the base. r = fan_in / fan_in_0 and
s = fan_out / fan_out_0 of one matrix, m = h / h_0, mL = L / L_0.

Sources: [TP5] Tensor Programs V, arXiv:2203.03466, Table 8 and App. B. [SPEC] arXiv:2310.17813, condition 1.
[TP6] arXiv:2310.02244, Table 1. [CP] CompleteP, arXiv:2505.01618, Table 1. [CDP] arXiv:2512.22382.
[WD] arXiv:2309.14322.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Keys = Mapping[str, Any]
GATED = ("geglu", "reglu", "swiglu", "glu", "bilinear")


@dataclass(frozen=True)
class Sizes:
    """Sizes of one model. ffn: inner width of the MLP, or of each half if it is gated."""

    hidden: int
    heads: int
    kv: int
    ffn: int
    layers: int
    halves: int = 1

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv) * self.head_dim


def _ffn(keys: Keys, hidden: int, inner: int | None) -> int:
    """Inner width: 4 h by default, a third of the nominal width per half if gated, rounded up to a multiple."""
    nominal = inner or (int(keys["expansion_factor"] * hidden) if keys["expansion_factor"] else 4 * hidden)
    width = int(nominal * 2 / 3) // 2 if keys["activation"] in GATED else nominal
    multiple = keys["mlp_multiple_of"] or 1
    return math.ceil(width / multiple) * multiple


def target_sizes(keys: Keys) -> Sizes:
    """Sizes of the configured model."""
    hidden, heads = keys["hidden_size"], keys["num_attention_heads"]
    kv = keys["num_kv_heads"] or heads
    halves = 2 if keys["activation"] in GATED else 1
    return Sizes(hidden, heads, kv, _ffn(keys, hidden, keys["intermediate_size"]), keys["num_layers"], halves)


def base_sizes(keys: Keys, file: Mapping[str, int]) -> Sizes:
    """Sizes of the base: the model itself in SP, otherwise those of the keys or of the base-shape file.

    file: base dimensions in the base-shape file by key (`base_dimensions`); empty without a file.
    """
    target = target_sizes(keys)
    base_hidden = file.get("mup_base_hidden_size") or keys["mup_base_hidden_size"]
    if not keys["use_mup"] or base_hidden is None:
        return target
    heads = file.get("mup_base_num_attention_heads") or keys["mup_base_num_attention_heads"] or target.heads
    grouped = target.kv if target.kv != target.heads else heads
    kv = file.get("mup_base_num_kv_heads") or keys["mup_base_num_kv_heads"] or grouped
    inner = keys["mup_base_intermediate_size"]
    if inner is None and keys["intermediate_size"]:
        inner = keys["intermediate_size"] * base_hidden // target.hidden
    ffn = file.get("ffn") or _ffn(keys, base_hidden, inner)
    layers = file.get("mup_base_num_layers") or keys["mup_base_num_layers"] or target.layers
    return Sizes(base_hidden, heads, kv, ffn, layers, target.halves)


def base_dimensions(text: str) -> dict[str, int]:
    """Base dimensions in a base-shape file, from its comment lines, or else from two shapes and the layer numbers."""
    labels = {"mup-base-hidden-size", "mup-base-num-attention-heads", "mup-base-num-kv-heads", "mup-base-num-layers"}
    found = {label.replace("-", "_"): number for label, number in _comments(text) if label in labels}
    if (ffn := dict(_comments(text)).get("base ffn hidden size")) is not None:
        found["ffn"] = ffn
    embedding = re.search(r"word_embeddings\.weight['\"]?:\n- .*\n- (\d+)", text)
    down = re.search(r"(?:4h_to_h|linear2)(?:\.weight)?['\"]?:\n(?:- .*\n)+", text)
    if embedding:
        found.setdefault("mup_base_hidden_size", int(embedding[1]))
    if down and (last := re.findall(r"- (\d+)", down[0])):
        found.setdefault("ffn", int(last[-1]))
    return found


def _comments(text: str) -> list[tuple[str, int]]:
    return [(label, int(number)) for label, number in re.findall(r"^# *([\w -]+): (\d+)$", text, re.M)]


Fan = Callable[[Sizes], int]
# name of a matrix -> fan-in, fan-out; None is a finite dimension, which is read from the weight
MATRICES: Sequence[tuple[str, Fan | None, Fan | None]] = (
    (r"embedding\.(word|position)_embeddings\.weight", None, lambda x: x.hidden),
    (r"layers\.\d+\.attention\.query_key_value\.weight", lambda x: x.hidden, lambda x: x.qkv),
    (r"layers\.\d+\.attention\.rpe\.weight", None, lambda x: x.heads),
    (r"layers\.\d+\.attention\.dense\.weight", lambda x: x.hidden, lambda x: x.hidden),
    (r"layers\.\d+\.mlp\.(experts\.)?dense_h_to_4h(\.weight)?", lambda x: x.hidden, lambda x: x.halves * x.ffn),
    (r"layers\.\d+\.mlp\.(experts\.)?dense_4h_to_h(\.weight)?", lambda x: x.ffn, lambda x: x.hidden),
    (r"layers\.\d+\.mlp\.router\.weight", lambda x: x.hidden, None),
    (r"readout\.weight", lambda x: x.hidden, None),
)
VECTORS: Sequence[tuple[str, Fan]] = (
    (r"(layers\.\d+\.(input|post_attention)_layernorm|final_norm)\.(weight|bias)", lambda x: x.hidden),
    (r"layers\.\d+\.attention\.[qk]_norm\.(weight|bias)", lambda x: x.head_dim),
    (r"layers\.\d+\.attention\.query_key_value\.bias", lambda x: x.qkv),
    (r"layers\.\d+\.mlp\.dense_h_to_4h\.bias", lambda x: x.halves * x.ffn),
    (r"layers\.\d+\.(attention\.dense|mlp\.dense_4h_to_h)\.bias", lambda x: x.hidden),
)


@dataclass(frozen=True)
class Expectation:
    """What one parameter must have, without its place in the schedule.

    kind: input, hidden, output or vector. r: fan-in ratio, or the ratio of the dimension of a vector. parts: (name,
    first row, last row + 1, period, std) of rows with a std of their own, or one part for all rows; none for a vector.
    lr, eps: factors. decay: coefficient of weight decay in the optimizer. value: of all entries of a vector.
    """

    kind: str
    r: float
    parts: tuple[tuple[str, int, int, int, float], ...]
    lr: float
    eps: float
    decay: float
    value: float = 0.0


@dataclass(frozen=True)
class Expected:
    """Everything that a configuration must give. file: `base_dimensions` of its base-shape file."""

    keys: Keys
    file: Mapping[str, int]

    @property
    def target(self) -> Sizes:
        return target_sizes(self.keys)

    @property
    def base(self) -> Sizes:
        return base_sizes(self.keys, self.file)

    def _key(self, name: str, in_sp: Any) -> Any:
        """A key of muP, which has the neutral value `in_sp` in SP."""
        return self.keys[name] if self.keys["use_mup"] else in_sp

    @property
    def m(self) -> float:
        return self.target.hidden / self.base.hidden

    @property
    def _sgd(self) -> bool:
        return bool(self.keys["optimizer_type"] == "sgd")

    # --- forward factors ---

    def embedding_factor(self) -> float:
        """x = alpha_emb (W_tok[t] + W_pos[i]): the tunable multiplier of [TP5], App. F.4."""
        return float(self._key("mup_embedding_mult", 1.0))

    def attention_factor(self) -> float:
        """softmax(q.k sqrt(d_0) / (d tau)): 1/d instead of 1/sqrt(d), [TP5] Definition 4.1; 1/sqrt(d) in SP."""
        return math.sqrt(self.base.head_dim) / self.target.head_dim / float(self._key("mup_attn_temp", 1.0))

    def position_bias_factor(self) -> float:
        """scores + alpha_rp sqrt(d_0) b: sqrt(d) as in GPT-NeoX at the base, so that the bias does not grow with d."""
        return math.sqrt(self.base.head_dim) * float(self._key("mup_rp_embedding_mult", 1.0))

    def norm_factor(self, over_heads: bool) -> float:
        """scalenorm: y = sqrt(n / n_0) g x / |x|, as |x| grows with sqrt(n): y keeps the size it has at n_0."""
        target, base = self.target, self.base
        ratio = target.head_dim / base.head_dim if over_heads else target.hidden / base.hidden
        return math.sqrt(ratio) if self.keys["use_mup"] else 1.0

    def logits_factor(self) -> float:
        """logits = W x / (m tau): [TP5] Table 8, the multiplier 1/fan_in of output weights. Routers alike."""
        return 1.0 / self.m / float(self._key("mup_output_temp", 1.0))

    def branch_factor(self) -> float:
        """x + mL^-alpha f(x): [TP6] Table 1 for alpha 1/2, [CP] Table 1 for alpha 1."""
        return float((self.target.layers / self.base.layers) ** -self._key("mup_depth_alpha", 0.0))

    # --- parameters ---

    def parameter(self, name: str, shape: Sequence[int]) -> Expectation | None:
        """Expectation of one parameter with a global shape; None if no rule covers its name."""
        for pattern, size in VECTORS:
            if re.fullmatch(pattern, name):
                own = size(self.target) / size(self.base)
                gain = self.keys["norm"] == "scalenorm" and "norm" in name  # one number, whatever the width
                return self._vector(name, 1.0 if gain else own, shape)
        for pattern, fan_in, fan_out in MATRICES:
            if re.fullmatch(pattern, name):
                return self._matrix(name, fan_in, fan_out, shape)
        return None

    def _depth(self, name: str) -> tuple[float, float]:
        """Factors on lr and eps in a block. Adam: mL^(alpha-1) and mL^-alpha, [CP] Table 1; SGD: lr mL^(2 alpha-1)."""
        alpha, ratio = self._key("mup_depth_alpha", 0.0), self.target.layers / self.base.layers
        if not name.startswith("layers.") or alpha == 0:
            return 1.0, 1.0
        return ratio ** (2 * alpha - 1 if self._sgd else alpha - 1), ratio**-alpha

    def _vector(self, name: str, own: float, shape: Sequence[int]) -> Expectation:
        """Adam: lr 1; SGD: lr times the ratio of its own dimension, [TP5] Table 8. eps over that ratio, [CDP]."""
        lr, eps = self._depth(name)
        eps *= 1.0 / own if self._key("mup_eps_scaling", False) else 1.0
        value = 1.0 if name.endswith("weight") else 0.0
        return Expectation("vector", own, (), lr * (own if self._sgd else 1.0), eps, 0.0, value)

    def _matrix(self, name: str, fan_in: Fan | None, fan_out: Fan | None, shape: Sequence[int]) -> Expectation:
        target, base = self.target, self.base
        r = fan_in(target) / fan_in(base) if fan_in else 1.0
        s = fan_out(target) / fan_out(base) if fan_out else 1.0
        kind = "hidden" if fan_in and fan_out else "input" if fan_out else "output"
        # [TP5] Table 8. Adam: lr 1/fan_in for hidden weights, else 1. SGD: fan_out/fan_in, fan_out, fan_in.
        adam = {"input": 1.0, "hidden": 1.0 / r, "output": 1.0}
        sgd = {"input": s, "hidden": s / r, "output": r}
        lr = (sgd if self._sgd else adam)[kind]
        depth_lr, depth_eps = self._depth(name)
        eps = 1.0 / self.m if self._key("mup_eps_scaling", False) else 1.0  # [CP] Table 1, [CDP]
        scaled = self._key("mup_weight_decay_mode", "constant") == "scaled"
        decay = self.keys["weight_decay"] / (lr if scaled else 1.0)  # lr x wd keeps its size: [CP] Table 1
        finite = shape[0] if kind != "hidden" else 0
        fans = (fan_in(base) if fan_in else finite, fan_out(base) if fan_out else finite)
        return Expectation(kind, r, self._parts(name, kind, r, s, fans), lr * depth_lr, eps * depth_eps, decay)

    def _parts(
        self, name: str, kind: str, r: float, s: float, fans: tuple[int, int]
    ) -> tuple[tuple[str, int, int, int, float], ...]:
        std = self._key("mup_init_scale", 1.0) * self._base_std(name, *fans)
        if "query_key_value" in name:
            t, b = self.target, self.base
            group, d = t.heads // t.kv, t.head_dim
            key_std = std * _shrink(r, t.kv * d / (b.kv * b.head_dim))
            query_std = 0.0 if self._key("mup_query_zero_init", False) else std * _shrink(r, r)
            period = (group + 2) * d
            query = ("query", 0, group * d, period, query_std)
            key = ("key", group * d, (group + 1) * d, period, key_std)
            return query, key, ("value", (group + 1) * d, period, period, key_std)
        if kind == "output" and self._key("mup_readout_zero_init", False):
            std = 0.0
        return (("", 0, 1, 1, std * (_shrink(r, s) if kind == "hidden" else 1.0)),)

    def _base_std(self, name: str, fan_in: int, fan_out: int) -> float:
        """Standard deviation in the base model, by the name of the method."""
        key = "output_layer_init_method" if re.search(r"attention\.dense|4h_to_h", name) else "init_method"
        h, layers, std = self.base.hidden, self.base.layers, self.keys["init_method_std"]
        return float(
            {
                "normal": std,
                "scaled_normal": std / math.sqrt(2 * layers),  # Megatron-LM
                "single_residual_scaled_normal": std / math.sqrt(layers),
                "small_init": math.sqrt(2 / (5 * h)),  # arXiv:1910.05895
                "wang_init": 2 / layers / math.sqrt(h),  # GPT-J
                "xavier_uniform": math.sqrt(2 / (fan_in + fan_out)),  # Glorot and Bengio 2010
                "xavier_normal": math.sqrt(2 / (fan_in + fan_out)),
                "orthogonal": max(fan_in, fan_out) ** -0.5,
                "scaled_orthogonal": (max(fan_in, fan_out) * 2 * layers) ** -0.5,
            }[self.keys[key]]
        )

    # --- optimizer and schedule ---

    def optimizer(self) -> tuple[dict[str, Any], float, float]:
        """Parameters of the optimizer, peak rate and eps."""
        params = (self.keys["optimizer"] or {}).get("params") or {}
        return params, float(self.keys["lr"]), float(params.get("eps", 1e-8))

    def independent_decay(self) -> bool:
        """p -= lambda (rate / peak rate) p: [WD]."""
        return bool(self._key("mup_weight_decay_mode", "constant") == "independent")

    def phases(self) -> dict[str, int]:
        """Updates at which rates are compared: in the warmup, at its end, in the decay, and at the end."""
        steps, decay, warmup, cooldown = self._spans()
        found = {"first": 0, "warmup": warmup // 2, "peak": max(warmup - 1, 0), "after warmup": warmup}
        found |= {"decay": (warmup + decay) // 2, "cooldown": decay - max(cooldown // 2, 1), "last": steps - 1}
        return {name: min(max(step, 0), steps - 1) for name, step in found.items()}

    def _spans(self) -> tuple[int, int, int, int]:
        """Steps of the run, of decay with warmup, of warmup, and of the cooldown of wsd."""
        keys, steps = self.keys, int(self.keys["train_iters"])
        decay = int(keys["lr_decay_iters"] or steps)
        if keys["lr_decay_fraction"] is not None:
            decay = int(steps * keys["lr_decay_fraction"])
        return steps, decay, int(keys["warmup"] * decay), int(keys["lr_cooldown_fraction"] * steps)

    def base_rate(self, k: int) -> float:
        """Rate of update k = 0, 1, ... of a parameter with factor 1."""
        keys = self.keys
        peak, floor = float(keys["lr"]), float(keys["min_lr"])
        _, decay, warmup, cooldown = self._spans()
        if k < warmup:
            inverse_log = keys["warmup_style"] == "inverse_log"
            return peak * (math.log(k + 2) / math.log(warmup + 1) if inverse_log else (k + 1) / warmup)
        p = min((k - warmup) / (decay - warmup), 1.0) if decay > warmup else 1.0
        style = keys["lr_decay_style"]
        if style == "linear":
            return max(peak * (1 - p), floor)
        if style == "cosine":
            return floor + (peak - floor) * (1 + math.cos(math.pi * p)) / 2
        if style == "exponential":
            return max(peak * math.exp(-0.693 * (k - warmup) / max(decay - warmup, 1)), floor)
        if style == "wsd" and cooldown and k >= decay - cooldown:
            q = min((k - decay + cooldown) / cooldown, 1.0)
            shape = {"linear": 1 - q, "cosine": (1 + math.cos(math.pi * q)) / 2, "sqrt": 1 - math.sqrt(q)}
            return floor + (peak - floor) * float(shape[keys["lr_cooldown_style"]])
        return peak


def _shrink(r: float, s: float) -> float:
    """Factor on the std of a matrix inside the network: |W|_spectral = sqrt(fan_out / fan_in), [SPEC] condition 1.

    A random matrix has the norm std (sqrt(fan_in) + sqrt(fan_out)), so std falls as r^-1/2 for s >= r, [TP5] Table 8,
    and as s^1/2 / r if the fan-out grows more slowly.
    """
    return min(1 / math.sqrt(r), math.sqrt(s) / r)
