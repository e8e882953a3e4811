"""Writes files in wandb's format: LevelDB chunks of Records built with wandb's own message classes."""

from __future__ import annotations

import struct
import zlib

from wandb.proto import wandb_internal_pb2 as pb

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32768


def log_of(payloads):
    """The bytes of a file, and for each payload the end of its last chunk."""
    data, ends = bytearray(HEADER), []
    for payload in payloads:
        rest, first = payload, True
        while True:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data += bytes(room)
                room = BLOCK
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not rest]
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
            if not rest:
                break
        ends.append(len(data))
    return bytes(data), ends


def history(step, values, num=1):
    """A Record with the metrics of one step. values: {name or tuple of levels: JSON text}."""
    record = pb.Record(num=num)
    for name, text in {**values, "_step": str(step)}.items():
        item = record.history.item.add(value_json=text)
        item.nested_key.extend([name] if isinstance(name, str) else name)
    record.history.step.num = step
    return record


def run_record(config, **fields):
    record = pb.Record(num=1, run=pb.RunRecord(run_id="abc", **fields))
    for key, text in config.items():
        record.run.config.update.add(key=key, value_json=text)
    return record


def exit_record(code=0):
    record = pb.Record(num=9)
    record.exit.exit_code = code
    record.exit.runtime = 3
    return record


def reference_records(data):
    """Records up to the first damaged or truncated chunk, from a plain scan with wandb's own classes."""
    position, parts, found = len(HEADER), [], []
    while position + 7 <= len(data):
        room = BLOCK - position % BLOCK
        if room < 7:
            position += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        payload = data[position + 7 : position + 7 + length]
        if len(payload) < length or zlib.crc32(bytes([kind]) + payload) != checksum:
            break
        parts.append(payload)
        position += 7 + length
        if kind in (1, 4):
            found.append(pb.Record.FromString(b"".join(parts)))
            parts = []
    return found
