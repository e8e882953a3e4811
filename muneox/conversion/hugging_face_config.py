"""Read config.json of a model of Hugging Face's transformers as keys of this trainer's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from megatron.errors import CheckpointError
from megatron.files import read_json
from muneox.conversion.families import FAMILIES, GATED, PLAIN, Family

T = TypeVar("T")
_MISSING: Any = object()
_FAMILY = {FAMILIES[name].model_type: FAMILIES[name] for name in ("neox", "llama", "mistral")}

_SYNONYMS = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "swish": "silu"}


class HuggingFaceConfig:
    """config.json of a folder. Fields that are absent have the defaults of transformers.

    Raises CheckpointError, which names the file and the field, if a field is malformed or not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        try:
            content = read_json(self.path)
        except FileNotFoundError:
            raise CheckpointError(f"{folder} holds no config.json: it is no model of transformers") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{self.path}: expected a JSON object")
        self._fields = content
        kind = self.get("model_type", str)
        if kind not in _FAMILY:
            raise self.unsupported("model_type", f"{kind}; only {', '.join(_FAMILY)} can be converted")
        self.family: Family = _FAMILY[kind]

    def get(self, name: str, kind: type[T], default: T = _MISSING) -> T:
        """The field `name`. A field that is null counts as absent."""
        return self._typed(self._fields, name, kind, default)

    def unsupported(self, field: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {field}: {why}")

    @property
    def vocab_size(self) -> int:
        return self.get("vocab_size", int)

    def keys(self) -> dict[str, Any]:
        """The configuration keys of the model."""
        self._check()
        hidden, heads, positions = (
            self.get(name, int) for name in ("hidden_size", "num_attention_heads", "max_position_embeddings")
        )
        keys = {
            "num-layers": self.get("num_hidden_layers", int),
            "hidden-size": hidden,
            "num-attention-heads": heads,
            "seq-length": positions,
            "max-position-embeddings": positions,
            "pos-emb": "rotary",
            **self._rotary(),
            "no-weight-tying": not self.get("tie_word_embeddings", bool, False),
            "attention-dropout": self.get("attention_dropout", float, 0.0),
            "make-vocab-size-divisible-by": self.vocab_multiple,
        }
        return keys | (self._neox() if self.family.name == "neox" else self._llama())

    @property
    def vocab_multiple(self) -> int:
        """The largest power of two, up to 128, that divides the vocabulary: it needs no padding."""
        return next(n for n in (128, 64, 32, 16, 8, 4, 2, 1) if self.vocab_size % n == 0)

    def _check(self) -> None:
        if "quantization_config" in self._fields:
            raise self.unsupported("quantization_config", "its weights are quantised: convert the original model")
        heads, hidden = self.get("num_attention_heads", int), self.get("hidden_size", int)
        for name in (
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "max_position_embeddings",
            "vocab_size",
        ):
            if self.get(name, int) < 1:
                raise self.unsupported(name, f"expected a positive number, got {self.get(name, int)}")
        if self.get("head_dim", int, hidden // heads) * heads != hidden:
            raise self.unsupported("head_dim", "hidden_size must be num_attention_heads x head_dim")

    def _rotary(self) -> dict[str, Any]:
        section: Mapping[str, Any] = self.get("rope_parameters", dict, {}) or self.get("rope_scaling", dict, {})
        former = self.get("rotary_emb_base", float, 10000.0)  # of GPT-NeoX's class; Llama's has the field rope_theta
        base = self._typed(section, "rope_theta", float, self.get("rope_theta", float, former))
        if base != int(base):
            raise self.unsupported("rope_theta", f"{base}; expected a whole number")
        return {"rotary-emb-base": int(base), **self._scaling(section)}

    def _scaling(self, section: Mapping[str, Any]) -> dict[str, Any]:
        name = "rope_type" if "rope_type" in section else "type"
        kind = self._typed(section, name, str, "default")
        if kind == "default":
            return {}
        if kind not in ("linear", "dynamic", "llama3"):
            raise self.unsupported("rope_scaling", f"type {kind}; only linear, dynamic and llama3 are supported")
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = {name: section[name] for name in names if section.get(name) is not None}
        if kind == "dynamic":  # transformers scales from max_position_embeddings on
            scaling["original_max_position_embeddings"] = self.get("max_position_embeddings", int)
        return {"rope-scaling": {"rope_type": kind, **scaling}}

    def _neox(self) -> dict[str, Any]:
        section: Mapping[str, Any] = self.get("rope_parameters", dict, {})
        share = self.get("rotary_pct", float, 0.25)
        bias = self.get("attention_bias", bool, True)
        return {
            "norm": "layernorm",
            "layernorm-epsilon": self.get("layer_norm_eps", float, 1e-5),
            "activation": self._activation(PLAIN, self.get("hidden_act", str, "gelu")),
            "intermediate-size": self.get("intermediate_size", int),
            "rotary-pct": self._typed(section, "partial_rotary_factor", float, share),
            "gpt-j-residual": self.get("use_parallel_residual", bool, True),
            "hidden-dropout": self.get("hidden_dropout", float, 0.0),
            "use-bias-in-attn-linear": bias,
        }

    def _llama(self) -> dict[str, Any]:
        mistral = self.family.name == "mistral"
        keys: dict[str, Any] = {
            "norm": "rmsnorm",
            "rms-norm-epsilon": self.get("rms_norm_eps", float, 1e-6),
            "activation": self._activation(GATED, self.get("hidden_act", str, "silu")),
            "intermediate-size": 3 * self.get("intermediate_size", int),  # GPT-NeoX's, of which a gate uses a third
            "num-kv-heads": self.get("num_key_value_heads", int, self.get("num_attention_heads", int)),
            "use-bias-in-attn-linear": not mistral and self.get("attention_bias", bool, False),
            "use-bias-in-mlp": not mistral and self.get("mlp_bias", bool, False),
        }
        default = None if "sliding_window" in self._fields else 4096
        window = self.get("sliding_window", int, default) if mistral else None
        if window is not None:
            if window < 2:
                raise self.unsupported("sliding_window", f"{window}; expected at least 2")
            keys["sliding-window-width"] = window - 1  # transformers counts the token itself
        return keys

    def _activation(self, known: Mapping[str, str], name: str) -> str:
        """Our name of the activation `name` of transformers."""
        found = [ours for ours, theirs in known.items() if theirs == _SYNONYMS.get(name, name)]
        if found:
            return found[0]
        raise self.unsupported("hidden_act", f"{name}; only {', '.join(sorted(set(known.values())))} are supported")

    def _typed(self, fields: Mapping[str, Any], name: str, kind: type[T], default: T) -> T:
        value = fields.get(name)
        if value is None:
            if default is _MISSING:
                raise CheckpointError(f"{self.path}: {name} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CheckpointError(f"{self.path}: {name}: expected {kind.__name__}, got {str(value)[:80]!r}")
        return value
