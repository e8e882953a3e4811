"""Monitors of a run: console, JSONL, Weights & Biases and TensorBoard, behind one small protocol.

The trainer makes one `record` per log step and does not know its readers. The monitors know the names `step`,
`tokens`, `train/loss`, `valid/loss`, `test/loss` (nats per token), `lr` (base rate), `grad_norm`, and those of
`ThroughputTimer.window`. Any other name is recorded unchanged.
"""

from megatron.monitoring.base import Monitor, MonitorGroup, Record
from megatron.monitoring.build import build_monitors, default_log_dir
from megatron.monitoring.flops import PEAK_TFLOPS, flops_per_token, peak_tflops
from megatron.monitoring.jsonl import JsonlMonitor, read_metrics
from megatron.monitoring.memory import peak_memory
from megatron.monitoring.profiler import ProfilerMonitor
from megatron.monitoring.throughput import ThroughputTimer

__all__ = [
    "PEAK_TFLOPS",
    "JsonlMonitor",
    "Monitor",
    "MonitorGroup",
    "ProfilerMonitor",
    "Record",
    "ThroughputTimer",
    "build_monitors",
    "default_log_dir",
    "flops_per_token",
    "peak_memory",
    "peak_tflops",
    "read_metrics",
]
