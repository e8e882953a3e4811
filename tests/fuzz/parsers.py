"""Every parser of this project as the fuzzer sees it: valid inputs, a mutation, and the code that users reach."""

from __future__ import annotations

import base64
import copy
import functools
import gzip
import hashlib
import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from megatron.errors import DataError
from tests.fuzz.mutate import VALUES, mutated, replaced

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Parser:
    """seeds: valid inputs, which `parse` accepts. mutate: changes an input. parse: reads it, with a folder."""

    seeds: Callable[[], list[Any]]
    parse: Callable[[Any, Path], object]
    mutate: Callable[[Any, random.Random, list[Any]], Any] = mutated


def _values(content: Any, rng: random.Random, seeds: list[Any]) -> Any:
    return replaced(content, rng)


def _json_or_bytes(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    """Half of the inputs are JSON with other values, the others changed bytes."""
    if rng.random() < 0.5:
        return mutated(content, rng, seeds)
    return json.dumps(replaced(json.loads(content), rng)).encode()


def _written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- configuration ---

BASE: dict[str, Any] = {
    **{"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "seq_length": 64, "max_position_embeddings": 64},
    **{"train_iters": 10, "train_micro_batch_size_per_gpu": 4, "use_mup": True, "mup_base_hidden_size": 16},
    **{"data_path": "data/x", "tokenizer_type": "CharLevelTokenizer", "lr_decay_style": "cosine", "warmup": 0.1},
    "optimizer": {"type": "Adam", "params": {"lr": 0.005, "betas": [0.9, 0.95], "eps": 1e-8}},
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000, "offload_optimizer": {"device": "cpu"}},
    "fp16": {"enabled": True, "loss_scale": 0, "loss_scale_window": 100},
    "deepspeed_extra_args": {"timers": {"throughput": {"enabled": True}}},
}


def _configs() -> list[bytes]:
    files = ["125M.yml", "local_setup.yml", "mup/demo.yml", "llama/7B.yml"]
    block = b"# a comment\nnum-layers: 2\nhidden-size: 32 # x\nfp16: &f {enabled: true}\nbf16:\n  enabled: false\n"
    shipped = [(ROOT / "configs" / file).read_bytes() for file in files if (ROOT / "configs" / file).is_file()]
    return [json.dumps(BASE).encode(), *[text for text in shipped if len(text) < 6000], block]


def _resolved(args: Any) -> None:
    from megatron.neox_arguments.resolve import dry_run_config, run_config

    args.notices(), args.deepspeed_config, args.to_dict(), args.non_default()
    run_config(args), dry_run_config(args)
    json.dumps(args.to_dict())


def _read_config(content: bytes, folder: Path) -> None:
    from megatron.neox_arguments import NeoXArgs
    from megatron.neox_arguments.yaml_loader import load_config

    file = load_config(_written(folder, "a.yml", content))
    if "hidden_size" in {str(key).replace("-", "_") for key in file.values}:
        _resolved(NeoXArgs.from_ymls([folder / "a.yml"], world_size=1))


@functools.cache
def _keys() -> list[tuple[str, ...]]:
    """The path of every key, inside sections too."""
    from megatron.neox_arguments.fields import FIELDS, KEYS, section_fields
    from megatron.neox_arguments.keys import key_of

    def below(path: tuple[str, ...], section: type) -> list[tuple[str, ...]]:
        found = []
        for name, field in section_fields(".".join(path), section).items():
            found.append((*path, name))
            inner = key_of(field).section
            found += below((*path, name), inner) if inner else []
        return found

    sections = {name: key.section for name, key in KEYS.items() if key.section}
    return [(name,) for name in FIELDS] + [
        path for name, section in sections.items() for path in below((name,), section)
    ]


def _set_keys(content: dict[str, Any], rng: random.Random, seeds: list[Any]) -> dict[str, Any]:
    changed: Any = replaced(content, rng) if rng.random() < 0.2 else copy.deepcopy(content)
    if not isinstance(changed, dict):
        return {"x": changed}
    for _ in range(rng.choice((1, 1, 2, 3))):
        *sections, last = rng.choice(_keys())
        place = changed
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[last] = copy.deepcopy(rng.choice(VALUES))
    return changed


def _check_values(content: dict[str, Any], folder: Path) -> None:
    from megatron.neox_arguments import NeoXArgs

    _resolved(NeoXArgs.from_dict(content, world_size=1))


def _command_lines() -> list[bytes]:
    return [
        b"--lr\n1e-3\n--fp16.enabled=true\n--zero_optimization\n{stage: 1}\n--use-mup\n--include\na:1,2@b\n--seed=3"
    ]


def _read_command_line(content: bytes, folder: Path) -> None:
    from megatron.neox_arguments import NeoXArgs

    config = _written(folder, "base.json", json.dumps({k: v for k, v in BASE.items() if k != "fp16"}).encode())
    words = content.decode("utf-8", "replace").split("\n")
    from megatron.neox_arguments.launcher import UsageRequested

    try:
        NeoXArgs.consume_neox_args(input_args=[str(config), *words])
    except UsageRequested:
        pass


def _read_encoded(content: bytes, folder: Path) -> None:
    from megatron.neox_arguments import NeoXArgs

    NeoXArgs.consume_neox_args(input_args=["--megatron_config", base64.urlsafe_b64encode(content).decode()])


def _read_hostfile(content: bytes, folder: Path) -> None:
    from megatron.neox_arguments.hosts import limit_hosts, read_hostfile, select_hosts

    hosts = read_hostfile(str(_written(folder, "hosts", content)))
    limit_hosts(select_hosts(hosts, "a", None) if "a" in hosts else hosts, -1, None)


# --- runs ---

HEADER = {
    "config": {"hidden_size": 64, "train_iters": 3, "optimizer": {"params": {"lr": 1e-3}}, "wandb_group": "g"},
    "model": {"hidden_size": 64, "params": 1000},
    **{"train_batch_size": 4, "seq_length": 8, "resumed_from": [1]},
}


def _metrics() -> list[bytes]:
    records = [
        {"step": i, "train/loss": 3.0 - i, "tokens": 32 * i, "lr": None, "lr_nonfinite": "nan"} for i in (1, 2, 3)
    ]
    return [b"".join(json.dumps(line).encode() + b"\n" for line in (HEADER, *records))]


def _mutated_lines(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    if rng.random() < 0.5:
        return mutated(content, rng, seeds)
    lines = content.split(b"\n")
    at = rng.randrange(len(lines) - 1)
    lines[at] = json.dumps(replaced(json.loads(lines[at]), rng)).encode()
    return b"\n".join(lines)


def _use_runs(path: Path) -> None:
    from muneox.runs import Smoothing as S
    from muneox.runs import at_step, common_steps, describe_corpus, read_runs, require_same_corpus, smooth, tokens_of

    for run in read_runs([str(path)], group=None):
        run.value("lr"), run.number("hidden_size"), require_same_corpus([run], "a test")
        describe_corpus(str(run.value("corpus.sha256")))
        for name, series in run.series.items():
            if len(series):
                at_step(run, name, int(series.steps[-1])), smooth(series, S("ema", 3)), common_steps([run, run], name)
                try:
                    tokens_of(run, series.steps)
                except DataError:
                    pass


def _read_metrics(content: bytes, folder: Path) -> None:
    from megatron.monitoring.jsonl import JsonlMonitor

    path = _written(folder, "metrics.jsonl", content)
    _use_runs(path)
    monitor = JsonlMonitor(path, resume_step=2)
    monitor.start({"config": {}})
    monitor.close()


def _read_csv(content: bytes, folder: Path) -> None:
    from muneox.scaling.ladder import Selection, read_points

    path = _written(folder, "run.csv", content)
    try:
        _use_runs(path)
    except DataError:
        pass
    read_points([str(path)], Selection("params", "loss"))


CSV = b"step,train/loss,params,loss\n1,3.0,100,3.1\n2,2.5,200,2.2\n3,2.25,300,1.5\n"


def _wandb_records() -> list[bytes]:
    from tests.runs import wandb_files as w

    messages = [w.run_record({"lr": "0.1", "opt": '{"eps": 1}'}, display_name="x", run_group="g")]
    messages += [w.history(i, {"train/loss": str(3 - i), ("a", "b"): "NaN", "text": '"t"'}) for i in range(4)]
    return [message.SerializeToString() for message in (*messages, w.exit_record(0))]


def _wandb_files() -> list[bytes]:
    from tests.runs import wandb_files as w

    return [w.log_of(_wandb_records())[0], w.log_of([*_wandb_records()[:3], bytes(100), b"x" * 70000])[0]]


def _mutate_wandb(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    """Half of the inputs have valid checksums around changed records."""
    from tests.runs import wandb_files as w

    if rng.random() < 0.5:
        return mutated(content, rng, seeds)
    records = _records()
    at = rng.randrange(len(records))
    changed = [mutated(one, rng, records) if i == at or rng.random() < 0.1 else one for i, one in enumerate(records)]
    return w.log_of(changed)[0]


_records = functools.cache(_wandb_records)


def _read_wandb(content: bytes, folder: Path) -> None:
    _use_runs(_written(folder, "run-abc.wandb", content))


def _crc(data: bytes) -> int:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    return int(masked_crc32c(data))


def _framed(records: list[bytes]) -> bytes:
    """TFRecords: length, its checksum, data, its checksum."""
    out = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        out += length + struct.pack("<I", _crc(length)) + record + struct.pack("<I", _crc(record))
    return out


@functools.cache
def _events() -> list[bytes]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    first = Event(file_version="brain.Event:2", wall_time=1.0)
    scalars = [
        Event(step=i, wall_time=1.0, summary=Summary(value=[Summary.Value(tag="l", simple_value=3 - i)]))
        for i in (1, 2)
    ]
    text = TensorProto(dtype=DT_STRING, string_val=[b"```{'lr': 1}```"])
    words = Event(wall_time=1.0, summary=Summary(value=[Summary.Value(tag="config/text_summary", tensor=text)]))
    return [event.SerializeToString() for event in (first, words, *scalars)]


def _mutate_events(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    if rng.random() < 0.4:
        return mutated(content, rng, seeds)
    return _framed([mutated(one, rng, _events()) if rng.random() < 0.3 else one for one in _events()])


def _read_events(content: bytes, folder: Path) -> None:
    _use_runs(_written(folder, "tb/events.out.tfevents.1.host", content))


# --- data ---


@functools.cache
def _index() -> bytes:
    from megatron.data.indexed_dataset import MAGIC

    sizes, pointers, documents = [3, 2, 4], [0, 6, 10], [0, 1, 2, 3]
    head = struct.pack("<9sQBQQ", MAGIC, 1, 8, len(sizes), len(documents))
    return (
        head
        + np.array(sizes, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(documents, "<i8").tobytes()
    )


TOKENS = np.arange(9, dtype="<u2").tobytes()


def _read_index(content: bytes, folder: Path) -> None:
    from megatron.data.gpt_dataset import GPTDataset
    from megatron.data.indexed_dataset import IndexedDataset

    _written(folder, "data.bin", TOKENS)
    _written(folder, "data.idx", content)
    shutil.rmtree(folder / "index_cache", ignore_errors=True)
    data = IndexedDataset(folder / "data")
    for i in range(len(data)):
        data[i].tolist()
    dataset = GPTDataset(data, np.arange(len(data), dtype=np.int32), 3, 2, 1)
    [dataset[i] for i in range(len(dataset))]


@functools.cache
def _cached_index() -> tuple[dict[str, bytes], list[list[int]]]:
    """The files of a cached sample index, and the samples that it gives."""
    import tempfile

    from megatron.data.gpt_dataset import GPTDataset
    from megatron.data.indexed_dataset import IndexedDataset

    folder = Path(tempfile.mkdtemp())
    _written(folder, "data.bin", TOKENS)
    _written(folder, "data.idx", _index())
    dataset = GPTDataset(IndexedDataset(folder / "data"), np.arange(3, dtype=np.int32), 6, 2, 1)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("index_cache/*/*")}
    samples = [dataset[i].tolist() for i in range(len(dataset))]
    shutil.rmtree(folder)
    return files, samples


def _mutate_cache(content: dict[str, bytes], rng: random.Random, seeds: list[Any]) -> dict[str, bytes]:
    name = rng.choice(sorted(content))
    return {**content, name: mutated(content[name], rng, list(content.values()))}


def _read_cache(content: dict[str, bytes], folder: Path) -> None:
    from megatron.data.gpt_dataset import GPTDataset
    from megatron.data.indexed_dataset import IndexedDataset

    for name, data in {"data.bin": TOKENS, "data.idx": _index(), **content}.items():
        _written(folder, name, data)
    dataset = GPTDataset(IndexedDataset(folder / "data"), np.arange(3, dtype=np.int32), 6, 2, 1)
    samples = [dataset[i].tolist() for i in range(len(dataset))]
    shutil.rmtree(folder / "index_cache")
    assert samples == _cached_index()[1], "a changed index gives other samples"


DOCUMENTS = [
    (".jsonl", b'{"text": "one", "meta": {"a": 1}}\n\n{"text": "two \\u00e9"}\n'),
    (".json", b'[{"text": "one"}, "two"]'),
    (".txt", b"\xef\xbb\xbfone\ntwo\n\nthree\n"),
    (".jsonl.gz", gzip.compress(b'{"text": "one"}\n', mtime=0)),
    (".jsonl.zst", zstandard.ZstdCompressor().compress(b'{"text": "one"}\n' * 3)),
]


def _documents() -> list[bytes]:
    return [bytes([i]) + content for i, (_, content) in enumerate(DOCUMENTS)]


def _mutate_documents(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    return content[:1] + mutated(content[1:], rng, [seed[1:] for seed in seeds])


def _read_documents(content: bytes, folder: Path) -> None:
    from megatron.data.documents import DocumentReader

    path = _written(folder, "docs" + DOCUMENTS[content[0]][0], content[1:])
    list(DocumentReader([path], skip_bad_lines=True, text_split="line"))
    list(DocumentReader([path]))


# --- tokenizers ---

SAMPLE = "def naïve(x):\n    return 'straße → 日本 😀'  # <|endoftext|>"


@functools.cache
def _tokenizers() -> list[bytes]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [SAMPLE] * 5, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    )
    words = Tokenizer(models.WordLevel({"def": 0, "[UNK]": 1, "</s>": 2}, unk_token="[UNK]"))
    words.pre_tokenizer, words.normalizer = pre_tokenizers.Whitespace(), normalizers.NFKC()
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁d", -2.0), ("</s>", -3.0)], 0, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    return [one.to_str().encode() for one in (bpe, words, unigram)]


def _use_tokenizer(tokenizer: Any) -> None:
    from megatron.data.encoding import encode_documents  # noqa: F401

    ids = tokenizer.tokenize(SAMPLE)
    tokenizer.tokenize_batch([SAMPLE, ""])
    tokenizer.detokenize([*ids, 0, 10**6])
    assert tokenizer.vocab_size >= 1 and all(0 <= i < tokenizer.vocab_size for i in ids)
    try:
        assert tokenizer.eod >= 0
    except DataError:
        pass


def _read_tokenizer(content: bytes, folder: Path) -> None:
    from megatron.tokenizer import build_tokenizer

    _use_tokenizer(build_tokenizer("HFTokenizer", _written(folder, "tokenizer.json", content)))


def _gpt2_files() -> list[bytes]:
    vocab = json.loads(_tokenizers()[0])["model"]
    merges = "\n".join(" ".join(pair) if isinstance(pair, list) else pair for pair in vocab["merges"])
    return [json.dumps(vocab["vocab"]).encode() + b"\x01" + f"#version: 0.2\n{merges}\n".encode()]


def _read_gpt2(content: bytes, folder: Path) -> None:
    from megatron.tokenizer import build_tokenizer

    vocab, _, merges = content.partition(b"\x01")
    _use_tokenizer(
        build_tokenizer(
            "GPT2BPETokenizer", _written(folder, "vocab.json", vocab), _written(folder, "merges.txt", merges)
        )
    )


@functools.cache
def _sentencepiece() -> list[bytes]:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SAMPLE] * 20), model_writer=model, vocab_size=300, hard_vocab_limit=False,
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    return [model.getvalue()]


def _read_sentencepiece(content: bytes, folder: Path) -> None:
    from megatron.tokenizer import build_tokenizer

    _use_tokenizer(build_tokenizer("SPMTokenizer", _written(folder, "m.model", content)))


# --- base shapes and checkpoints ---

BSH = (
    b"# mup-base-hidden-size: 16\n# mup-base-num-layers: 2\nembedding.word_embeddings.weight:\n- null  # 50\n- 16\n"
    b"layers.0.attention.dense.weight:\n- 16\n- 16\n'quoted: name': [16, null]\n"
)


def _read_base_shapes(content: bytes, folder: Path) -> None:
    from megatron.parametrization.base_shapes import load_base_shapes

    load_base_shapes(_written(folder, "shapes.bsh", content))


@functools.cache
def _checkpoint_states() -> dict[str, Any]:
    import torch

    layout = {
        **{
            "tensor": 1,
            "pipe": 1,
            "data": 1,
            "zero_stage": 0,
            "precision": "fp32",
            "layers": ["a", "b"],
            "bounds": [0, 2],
        },
        **{"shapes": {"a.weight": [2, 3], "b.weight": [2]}, "shards": {"a.weight": [0, 1]}, "padded_vocab_size": 0},
    }
    client = {"layout": layout, "mup": {"base": {"hidden_size": 8}}, "tokens": 5}
    module = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(2)}
    counts = {"iteration": 1, "global_steps": 1, "global_samples": 4, "skipped_steps": 0, "dp_world_size": 1}
    return {"module": module, "client_state": client, "optimizer": None, **counts}


def _write_checkpoint(folder: Path, states: Any) -> Path:
    import torch

    from megatron.checkpointing.integrity import FileRecord, write_manifest

    step = folder / "save" / "global_step1"
    shutil.rmtree(folder / "save", ignore_errors=True)
    buffer = io.BytesIO()
    torch.save(states, buffer)
    _written(step, "mp_rank_00_model_states.pt", buffer.getvalue())
    _written(step, "configs/a.yml", b"lr: 1\n")
    records = {
        str(path.relative_to(step)): FileRecord(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in step.rglob("*")
        if path.is_file()
    }
    write_manifest(step, 1, records)
    _written(folder, "save/latest", b"global_step1")
    return step


def _mutate_states(content: Any, rng: random.Random, seeds: list[Any]) -> Any:
    import torch

    changed = replaced(content, rng)
    if rng.random() < 0.2 and isinstance(changed, dict) and isinstance(changed.get("module"), dict):
        changed["module"]["a.weight"] = rng.choice(
            [torch.ones(3), torch.ones(0), torch.ones(2, 3, dtype=torch.int8), 3]
        )
    return changed


def _read_checkpoint(content: Any, folder: Path) -> None:
    from megatron.checkpointing import load_weights
    from muneox.commands import inspect_checkpoints

    step = _write_checkpoint(folder, content)
    load_weights(step.parent)
    import contextlib

    with contextlib.redirect_stdout(io.StringIO()):
        inspect_checkpoints.main([str(step.parent)])


@functools.cache
def _manifest() -> bytes:
    import tempfile

    folder = Path(tempfile.mkdtemp())
    content = (_write_checkpoint(folder, _checkpoint_states()) / "manifest.json").read_bytes()
    shutil.rmtree(folder)
    return content


def _mutate_manifest(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    """Forged manifests have a valid hash of themselves."""
    from megatron.checkpointing.integrity import _render_manifest

    if rng.random() < 0.3:
        return mutated(content, rng, seeds)
    body = {key: value for key, value in json.loads(content).items() if key != "sha256"}
    if rng.random() < 0.4:
        name = rng.choice(
            ["/dev/zero", "/dev/random", "../../pipe", "pipe", "link", "outside", "loop", ".", "", "a\0b", "x" * 300]
        )
        body["files"][name] = {"size": rng.choice([0, 1, 2**62, -1]), "sha256": rng.choice(["0" * 64, ""])}
    else:
        body = replaced(body, rng)
    try:
        return _render_manifest(body if isinstance(body, dict) else {"x": body})
    except (TypeError, ValueError):
        return content


def _read_manifest(content: bytes, folder: Path) -> None:
    import os

    from megatron.checkpointing import find_intact, verify

    step = folder / "save" / "global_step1"
    if not step.exists():
        _write_checkpoint(folder, _checkpoint_states())
        os.mkfifo(step / "pipe")
        os.mkfifo(folder / "pipe")
        (step / "link").symlink_to("pipe")
        (step / "outside").symlink_to("/dev/zero")
        (step / "loop").symlink_to("loop")
    _written(step, "manifest.json", content)
    verify(step.parent)
    find_intact(step.parent)


# --- results and state of searches, ladders and reports ---


def _forecasts() -> list[bytes]:
    from tests.scaling.test_report import FORECAST

    selection: dict[str, Any] = {
        "x": "params",
        "y": "loss",
        "tokens": "tokens",
        "at_step": None,
        "smoothing": "none",
        "where": [],
    }
    extra = {"selection": selection, "registered": {"created": "2026", "inputs": [], "versions": {}, "sha256": ""}}
    return [json.dumps({**FORECAST, **extra}).encode()]


def _read_forecast(content: bytes, folder: Path) -> None:
    import contextlib

    from muneox.commands import predict_loss
    from muneox.scaling.forecast import _seal

    try:
        forged = json.loads(content)
        forged["registered"]["sha256"] = _seal(forged)
        content = json.dumps(forged).encode()
    except Exception:
        pass
    path, csv = _written(folder, "forecast.json", content), _written(folder, "runs.csv", CSV)
    with contextlib.redirect_stdout(io.StringIO()):
        predict_loss.main(["--check", str(path), str(csv), "--x", "params", "--y", "loss"])


def _report_inputs() -> list[bytes]:
    import tempfile

    from tests.scaling import test_report

    folder = Path(tempfile.mkdtemp())
    (folder / "audit.json").write_text(json.dumps(test_report.AUDIT))
    (folder / "forecast.json").write_text(json.dumps(test_report.FORECAST))
    contents = [
        b"audit\n" + (folder / "audit.json").read_bytes(),
        b"forecast\n" + (folder / "forecast.json").read_bytes(),
    ]
    shutil.rmtree(folder)
    return contents


def _mutate_report(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    option, _, text = content.partition(b"\n")
    return option + b"\n" + _json_or_bytes(text, rng, [seed.partition(b"\n")[2] for seed in seeds])


def _read_report(content: bytes, folder: Path) -> None:
    from muneox.commands import report

    option, _, text = content.partition(b"\n")
    path = _written(folder, "in.json", text)
    report.build(report.arguments().parse_args([f"--{option.decode()}", str(path)]))


def _read_evaluation(content: bytes, folder: Path) -> None:
    from muneox.scaling.ladder import Selection, read_points

    read_points([str(_written(folder, "results.json", content))], Selection("params", "lambada/ppl"))


EVALUATION = {"results": {"lambada": {"ppl,none": 12.5, "alias": "l"}}, "config": {"params": 1000}, "model_name": "m"}
SPACE = b"""\
sampler: grid
seed: 1
widths: [64]
seeds: [1, 2]
parameters:
  lr: {low: 1.0e-4, high: 0.1, log: true, points: 3}
  mup-output-temp: [0.5, 1.0]
"""


def _read_space(content: bytes, folder: Path) -> None:
    from megatron.neox_arguments import NeoXArgs
    from muneox.search.space import load_space

    args = _small_args()
    assert isinstance(args, NeoXArgs)
    space = load_space(_written(folder, "space.yml", content), args)
    space.describe()
    for parameter in space.parameters:
        parameter.position(parameter.at(0.5))


@functools.cache
def _small_args() -> Any:
    from megatron.neox_arguments import NeoXArgs

    return NeoXArgs.from_dict({key: value for key, value in BASE.items() if key != "fp16"}, world_size=1)


@functools.cache
def _journals() -> list[bytes]:
    import tempfile

    import optuna

    from muneox.search.storage import open_storage, open_study

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(tempfile.mkdtemp())
    for name in ("a.journal", "a.db"):
        study = open_study(*open_storage(str(folder / name)), "search", {"space": 1}, "a")
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(0.0, 1.0)})
        trial.set_user_attr("runs", {"w1": {"loss": 2.0}})
        study.tell(trial, 2.0)
    contents = [b"J" + (folder / "a.journal").read_bytes(), b"S" + (folder / "a.db").read_bytes()]
    shutil.rmtree(folder)
    return contents


def _mutate_journal(content: bytes, rng: random.Random, seeds: list[bytes]) -> bytes:
    if content[:1] == b"J":
        return b"J" + _mutated_lines(content[1:], rng, [content[1:]])
    return b"S" + mutated(content[1:], rng, [content[1:]])


def _read_journal(content: bytes, folder: Path) -> None:
    from muneox.search.storage import open_storage, open_study

    shutil.rmtree(folder, ignore_errors=True)
    path = _written(folder, "a.journal" if content[:1] == b"J" else "a.db", content[1:])
    storage, lock = open_storage(str(path))
    open_study(storage, lock, "search", {"space": 1}, str(path))


def _read_corpus_json(content: bytes, folder: Path) -> None:
    from muneox.commands.prepare_data import up_to_date

    _written(folder, "corpus.json", content)
    up_to_date(folder, {"a": 1})


PARSERS: dict[str, Parser] = {
    "config": Parser(_configs, _read_config),
    "config-values": Parser(lambda: [BASE, {**BASE, "fp16": None}], _check_values, _set_keys),
    "command-line": Parser(_command_lines, _read_command_line),
    "encoded-config": Parser(lambda: [json.dumps(BASE).encode()], _read_encoded, _json_or_bytes),
    "hostfile": Parser(lambda: [b"a slots=2\n# c\nb.c slots=4  # d\n"], _read_hostfile),
    "metrics": Parser(_metrics, _read_metrics, _mutated_lines),
    "csv": Parser(lambda: [CSV], _read_csv),
    "wandb": Parser(_wandb_files, _read_wandb, _mutate_wandb),
    "tensorboard": Parser(lambda: [_framed(_events())], _read_events, _mutate_events),
    "index": Parser(lambda: [_index()], _read_index),
    "sample-cache": Parser(lambda: [_cached_index()[0]], _read_cache, _mutate_cache),
    "documents": Parser(_documents, _read_documents, _mutate_documents),
    "tokenizer-json": Parser(_tokenizers, _read_tokenizer, _json_or_bytes),
    "tokenizer-gpt2": Parser(_gpt2_files, _read_gpt2),
    "tokenizer-sentencepiece": Parser(_sentencepiece, _read_sentencepiece),
    "base-shapes": Parser(lambda: [BSH, b"{a.weight: [16, null], 'b': [ 4 ]}\n"], _read_base_shapes),
    "manifest": Parser(lambda: [_manifest()], _read_manifest, _mutate_manifest),
    "checkpoint": Parser(lambda: [_checkpoint_states()], _read_checkpoint, _mutate_states),
    "forecast": Parser(_forecasts, _read_forecast, _json_or_bytes),
    "report": Parser(_report_inputs, _read_report, _mutate_report),
    "evaluation": Parser(lambda: [json.dumps(EVALUATION).encode()], _read_evaluation, _json_or_bytes),
    "search-space": Parser(lambda: [SPACE], _read_space),
    "search-state": Parser(_journals, _read_journal, _mutate_journal),
    "corpus-json": Parser(
        lambda: [b'{"request": {"a": 1}, "sha256": {"corpus.json": "00"}}'], _read_corpus_json, _json_or_bytes
    ),
}
