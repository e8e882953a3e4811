"""Compares our reader of wandb offline files with wandb's own message classes, for a long run on one core.

    python benchmarks/wandb_reader.py                      # 100,000 steps of nine metrics, as wandb 0.31 writes them
    python benchmarks/wandb_reader.py --file run-x.wandb   # your own file

wandb has no reader for these files. The baseline is written with the classes that it ships: a scan of the chunks with
their checksums, `Record.FromString` on each record, and `json.loads` on each value. Both must find the same numbers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from muneox.runs.wandb_file import read_wandb_file

BLOCK, PEER = 32768, "wandb's classes"
Columns = dict[str, dict[int, float]]


def wandb_like(steps: int) -> Iterator[bytes]:
    """Payloads of a run that logs nine metrics per step: per step one history record and two summary updates."""
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")  # generated code, without types

    draw = random.Random(0)
    names = ["train/loss", "lr", "grad_norm", "step_seconds", "tokens_per_second", "eta_seconds", "tflops"]
    for step in range(1, steps + 1):
        values = {name: repr(draw.random() * 3) for name in names}
        values |= {
            "tokens": str(step * 4096),
            "_step": str(step),
            "_timestamp": f"{1.7e9 + step}",
            "_runtime": f"{step}",
        }
        history, summary, runtime = pb.Record(num=3 * step), pb.Record(num=3 * step + 1), pb.Record(num=3 * step + 2)
        for name, text in values.items():
            history.history.item.add(nested_key=[name], value_json=text)
            summary.summary.update.add(nested_key=[name], value_json=text)
        history.history.step.num = step
        runtime.summary.update.add(nested_key=["_wandb", "runtime"], value_json=str(step))
        yield from (record.SerializeToString() for record in (runtime, summary, history))


def write(path: Path, payloads: Iterator[bytes]) -> None:
    """Write payloads in LevelDB's log format with wandb's header."""
    with path.open("wb") as file:
        at = file.write(b":W&B\xe1\xbe\x00")
        for payload in payloads:
            rest, first = payload, True
            while first or rest:
                room = BLOCK - at % BLOCK
                if room < 7:
                    at += file.write(bytes(room))
                    room = BLOCK
                part, rest = rest[: room - 7], rest[room - 7 :]
                kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not rest]
                checksum = zlib.crc32(bytes([kind]) + part)
                at += file.write(struct.pack("<IHB", checksum, len(part), kind) + part)
                first = False


def ours(path: Path) -> Columns:
    series = read_wandb_file(path).series
    return {name: dict(zip(one.steps.tolist(), one.values.tolist())) for name, one in series.items()}


def peer(path: Path) -> Columns:
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")  # generated code, without types

    data, at, parts, columns = path.read_bytes(), 7, [], Columns()
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        payload = data[at + 7 : at + 7 + length]
        if len(payload) < length or zlib.crc32(data[at + 6 : at + 7 + length]) != checksum:
            break
        parts.append(payload)
        at += 7 + length
        if kind in (1, 4):
            record = pb.Record.FromString(b"".join(parts))
            parts = []
            if record.HasField("history"):
                row = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                step = json.loads(row.pop("_step"))
                for name, text in row.items():
                    value = json.loads(text)
                    if isinstance(value, int | float):
                        columns.setdefault(name, {})[step] = float(value)
    return columns


def main(input_args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a run-*.wandb file (default: a generated one)")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(input_args)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "run-bench.wandb"
        if options.file is None:
            write(path, wandb_like(options.steps))
        columns = ours(path)
        if repr(sorted(columns.items())) != repr(sorted(peer(path).items())):  # repr, because NaN != NaN
            print("the two readers found different numbers")
            return 1
        seconds = {}
        for name, reader in (("ours", read_wandb_file), (PEER, peer)):
            times = []
            for _ in range(options.repeats):
                start = time.process_time()
                reader(path)
                times.append(time.process_time() - start)
            seconds[name] = min(times)
        events = max(map(len, columns.values()))
        print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB, {events} steps, {len(columns)} metrics; one core")
        for name, elapsed in seconds.items():
            print(f"{name:>16}: {elapsed:6.2f} s of CPU, {events / elapsed:9,.0f} steps/s")
        print(f"ratio: {seconds[PEER] / seconds['ours']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
