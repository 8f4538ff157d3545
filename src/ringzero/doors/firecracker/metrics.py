"""The metrics: one JSON object in a line, each minute and on demand, with Firecracker's names.

Counters say what was added since the last line. What is not counted here is 0.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ringzero.doors.firecracker import faults
from ringzero.doors.firecracker.logs import open_sink

# How often they are written unasked, in seconds.
PERIOD = 60.0


def _names(*names: str, counts: str = "", fails: str = "") -> tuple[str, ...]:
    """Return names, and those of `counts` with "_count", of `fails` with "_fails" behind each."""
    return (
        *names,
        *(f"{name}_count" for name in (counts or fails).split()),
        *(f"{name}_fails" for name in fails.split()),
    )


_PUT = "actions boot_source drive logger machine_cfg cpu_cfg metrics network mmds vsock pmem serial"
_PATCH = "drive network machine_cfg mmds hotplug_memory pmem"
_BLOCK = _names(
    *("activate_fails", "cfg_fails", "no_avail_buffer", "event_fails", "execute_fails"),
    *("invalid_reqs_count", "flush_count", "queue_event_count", "rate_limiter_event_count"),
    *("update_count", "update_fails", "read_bytes", "write_bytes", "read_count", "write_count"),
    *("rate_limiter_throttled_events", "io_engine_throttled_events", "remaining_reqs_count"),
)
_NET = _names(
    *("activate_fails", "cfg_fails", "no_rx_avail_buffer", "no_tx_avail_buffer", "event_fails"),
    *("rx_queue_event_count", "rx_event_rate_limiter_count", "rx_rate_limiter_throttled"),
    *("rx_tap_event_count", "rx_bytes_count", "rx_packets_count", "rx_fails", "rx_count"),
    *("tap_read_fails", "tap_write_fails", "tx_bytes_count", "tx_malformed_frames", "tx_fails"),
    *("tx_count", "tx_packets_count", "tx_queue_event_count", "tx_rate_limiter_event_count"),
    *("tx_rate_limiter_throttled", "tx_spoofed_mac_count", "tx_remaining_reqs_count"),
)
# The groups and what each holds.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "api_server": _names("process_startup_time_us", "process_startup_time_cpu_us"),
    "balloon": _names(
        *("activate_fails", "inflate_count", "stats_updates_count", "stats_update_fails"),
        *("deflate_count", "event_fails", "free_page_report_count", "free_page_report_freed"),
        *("free_page_report_fails", "free_page_hint_count", "free_page_hint_freed"),
        *("free_page_hint_fails",),
    ),
    "block": _BLOCK,
    "deprecated_api": _names("deprecated_http_api_calls"),
    "get_api_requests": _names(counts="instance_info machine_cfg mmds vmm_version hotplug_memory"),
    "latencies_us": _names(
        *("full_create_snapshot", "diff_create_snapshot", "load_snapshot", "pause_vm"),
        *("resume_vm", "vmm_full_create_snapshot", "vmm_diff_create_snapshot"),
        *("vmm_load_snapshot", "vmm_pause_vm", "vmm_resume_vm"),
    ),
    "logger": _names(
        *("missed_metrics_count", "metrics_fails", "missed_log_count", "rate_limited_log_count"),
    ),
    "mmds": _names(
        *("rx_accepted", "rx_accepted_err", "rx_accepted_unusual", "rx_bad_eth"),
        *("rx_invalid_token", "rx_no_token", "rx_count", "tx_bytes", "tx_count", "tx_errors"),
        *("tx_frames", "connections_created", "connections_destroyed"),
    ),
    "net": _NET,
    "patch_api_requests": _names(fails=_PATCH),
    "put_api_requests": _names(fails=f"{_PUT} hotplug_memory"),
    "seccomp": _names("num_faults"),
    "signals": _names("sigbus", "sigsegv", "sigxfsz", "sigxcpu", "sigpipe", "sighup", "sigill"),
    "vcpu": _names(
        *("exit_io_in", "exit_io_out", "exit_mmio_read", "exit_mmio_write", "failures"),
        *("kvmclock_ctrl_fails",),
    ),
    "vmm": _names("panic_count"),
    "uart": _names(
        *("error_count", "flush_count", "missed_read_count", "missed_write_count", "read_count"),
        *("write_count", "rate_limiter_dropped_bytes"),
    ),
    "vsock": _names(
        *("activate_fails", "cfg_fails", "rx_queue_event_fails", "tx_queue_event_fails"),
        *("ev_queue_event_fails", "muxer_event_fails", "conn_event_fails"),
        *("rx_queue_event_count", "tx_queue_event_count", "rx_bytes_count", "tx_bytes_count"),
        *("rx_packets_count", "tx_packets_count", "conns_added", "conns_killed"),
        *("conns_removed", "killq_resync", "tx_flush_fails", "tx_write_fails", "rx_read_fails"),
    ),
    "entropy": _names(
        *("activate_fails", "entropy_event_fails", "entropy_event_count", "entropy_bytes"),
        *("host_rng_fails", "entropy_rate_limiter_throttled", "rate_limiter_event_count"),
    ),
    "interrupts": _names("triggers", "config_updates"),
}
# These are what was measured last, not what was added.
_STORED = frozenset({"api_server", "latencies_us"})


class Metrics:
    """Counts, and writes to the file or named pipe that `configure` names, until `close`.

    `collect` returns what is counted elsewhere, as totals by group and name.
    """

    def __init__(self, identifier: str) -> None:
        self._identifier = identifier
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], int] = {}
        self._written: dict[tuple[str, str], int] = {}
        self._head: dict[str, Any] = {}
        self._descriptor = -1
        self.collect: Callable[[], Mapping[tuple[str, str], int]] = dict

    @property
    def configured(self) -> bool:
        """Whether there is somewhere to write."""
        return self._descriptor >= 0

    def configure(self, fields: Mapping[str, Any]) -> None:
        """Take where they go, once. Raises ApiFault."""
        if self.configured:
            raise faults.ApiFault(
                "Metrics error: Cannot initialize the metrics system due to bad user input: "
                "Reinitialization of metrics not allowed."
            )
        try:
            self._descriptor = open_sink(fields["metrics_path"])
        except OSError as fault:
            raise faults.ApiFault(
                "Metrics error: Cannot initialize the metrics system due to bad user input: "
                f"{faults.os_error(fault)}"
            ) from fault
        if fields.get("emit_id"):
            self._head["id"] = self._identifier
        if "properties" in fields:
            self._head["properties"] = fields["properties"]

    def count(self, group: str, name: str, by: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._values[group, name] = self._values.get((group, name), 0) + by

    def store(self, group: str, name: str, value: int) -> None:
        """Note what was measured."""
        with self._lock:
            self._values[group, name] = value

    def line(self) -> dict[str, Any]:
        """Return all of them; counters begin anew."""
        with self._lock:
            totals = {**self._values, **self.collect()}
            found: dict[str, Any] = {"utc_timestamp_ms": time.time_ns() // 1_000_000, **self._head}
            for group, names in GROUPS.items():
                found[group] = {
                    name: totals.get((group, name), 0)
                    - (0 if group in _STORED else self._written.get((group, name), 0))
                    for name in names
                }
            self._written = totals
        return found

    def flush(self) -> None:
        """Write a line, where there is somewhere to write it."""
        if not self.configured:
            return
        data = json.dumps(self.line(), separators=(",", ":")).encode() + b"\n"
        try:
            os.write(self._descriptor, data)
        except OSError:
            self.count("logger", "missed_metrics_count")

    def close(self) -> None:
        """Write the last line."""
        self.flush()
        if self.configured:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
