"""What a row costs, side by side in one run: ``make bench`` or ``python -m tests.bench CASE ...``.

Each case is a process of its own, pinned to one core; the server is pinned to another. CPU seconds
are the process's own (threads included); the machine's noise cancels best in ratios of figures
from one run. PEERS names the Python of an environment with DSPy in it, for the comparison.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPEAT = int(os.environ.get("BENCH_REPEAT", "3"))
PEERS = os.environ.get("PEERS")
sys.path.insert(0, str(HERE))


def _pin(core: int) -> Any:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        return None
    return lambda: os.sched_setaffinity(0, {cores[core]})


class Bench:
    """The server, and the figures so far."""

    def __init__(self, server: str = "server.py") -> None:
        self.server = subprocess.Popen(
            [sys.executable, str(HERE / server)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_pin(1),
        )
        assert self.server.stdout is not None
        self.port = int(self.server.stdout.readline())

    def served(self) -> float:
        """CPU seconds of the server so far: above its core's share it would be what is measured."""
        try:
            fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # no such thing on this system
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(10)

    def case(
        self,
        name: str,
        *,
        path: str = "0",
        rows: int,
        concurrency: int,
        python: str | None = None,
        **env: str,
    ) -> dict[str, Any]:
        """One run of one case."""
        values = {
            **os.environ,
            "BENCH_BASE": f"http://127.0.0.1:{self.port}/{path}/v1",
            "BENCH_ROWS": str(rows),
            "BENCH_CONCURRENCY": str(concurrency),
            **{f"BENCH_{key.upper()}": value for key, value in env.items()},
        }
        values.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            [python or sys.executable, str(HERE / "cases" / f"{name}.py")],
            env=values,
            capture_output=True,
            text=True,
            preexec_fn=_pin(0),
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        if found and found["right"] != rows:
            raise SystemExit(f"{name}: {found['right']} of {rows} answers are right")
        return found

    def median(self, key: str, runs: list[dict[str, Any]]) -> float:
        return statistics.median(run[key] for run in runs)


def line(name: str, runs: list[dict[str, Any]]) -> float:
    """Print the medians of a case; return its CPU in microseconds per row."""
    cpu = statistics.median(run["cpu"] / run["rows"] for run in runs) * 1e6
    rate = statistics.median(run["rows"] / run["wall"] for run in runs)
    peak = statistics.median(run["peak_mb"] for run in runs)
    print(f"  {name:34s} {cpu:9.0f} us CPU/row {rate:9.0f} rows/s {peak:7.0f} MB peak", flush=True)
    return cpu


def bar(text: str, value: float, limit: float, *, least: bool = False) -> None:
    """Print whether a bar is met."""
    met = value >= limit if least else value <= limit
    sign = ">=" if least else "<="
    print(f"  {'met   ' if met else 'MISSED'} {text}: {value:.2f} ({sign} {limit:g})", flush=True)


def _interleaved(cases: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Repeat all cases in turn, so that a slow minute hits each of them."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(REPEAT):
        for name, run in cases.items():
            found[name].append(run())
    return found


def cpu_per_row(bench: Bench) -> None:
    for path, concurrency, rows in (("0", 64, 8000), ("200", 256, 12800)):
        print(f"\n{path} ms latency, {concurrency} in flight")
        cases: dict[str, Any] = {
            "bare aiohttp loop": lambda p=path, c=concurrency, r=rows: bench.case(
                "bare_aiohttp", path=p, rows=r, concurrency=c
            ),
            "dspy_stream, file to file": lambda p=path, c=concurrency, r=rows: bench.case(
                "engine", path=p, rows=r, concurrency=c, how="http"
            ),
            "bare httpx loop": lambda p=path, c=concurrency: bench.case(
                "bare_httpx", path=p, rows=600, concurrency=c
            ),
        }
        if PEERS:
            for how in ("acall", "parallel"):
                cases[f"DSPy {how}"] = lambda p=path, c=concurrency, h=how: bench.case(
                    "dspy_calls", path=p, rows=1500, concurrency=c, python=PEERS, how=h
                )
        runs = _interleaved(cases)
        costs = {name: line(name, found) for name, found in runs.items()}
        ours = costs["dspy_stream, file to file"]
        bar("CPU of ours / bare aiohttp", ours / costs["bare aiohttp loop"], 2.0)
        if PEERS:
            bar("DSPy acall / CPU of ours", costs["DSPy acall"] / ours, 6.0, least=True)
        if path == "200":
            rate = statistics.median(run["rows"] / run["wall"] for run in runs["dspy_stream, file to file"])
            # The last rows of a finite run leave slots empty; the ideal run ends in whole rounds.
            ideal = rows / (-(-rows // concurrency) * 0.2)
            bar("share of the ideal rate", rate / ideal, 0.9, least=True)


def heavy_tail(bench: Bench) -> None:
    from server import TABLE

    rows, concurrency = 20_000, 512
    print(f"\nlog-normal latency (mean 0.2 s, p99 2 s), {concurrency} in flight, {rows:,} rows")
    free = [0.0] * concurrency
    ends = []
    for latency in TABLE[:rows]:
        end = heapq.heappop(free) + latency
        heapq.heappush(free, end)
        ends.append(end)
    ideal = max(ends)
    for name, env in (
        ("engine alone", {"how": "latency"}),
        ("over HTTP", {"how": "http", "path": "lognormal"}),
    ):
        run = bench.case("engine", rows=rows, concurrency=concurrency, **env)
        line(name, [run])
        bar(f"share of the ideal ({ideal:.1f} s), {name}", ideal / run["wall"], 0.95, least=True)


def rerun(bench: Bench) -> None:
    print("\nEvery row served by the journal, in a new process")
    folder, rows = tempfile.mkdtemp(), 60_000
    try:
        bench.case("engine", rows=rows, concurrency=64, how="http", folder=folder)
        cases: dict[str, Any] = {
            "dspy_stream, file to file": lambda: bench.case(
                "engine", rows=rows, concurrency=64, how="rerun", folder=folder
            )
        }
        if PEERS:
            cache = str(Path(folder) / "dspy")
            bench.case(
                "dspy_calls", rows=0, concurrency=64, python=PEERS, how="cache", cache=cache, fill="2000"
            )
            cases["DSPy acall from its disk cache"] = lambda: bench.case(
                "dspy_calls", rows=2000, concurrency=64, python=PEERS, how="cache", cache=cache
            )
        costs = {name: line(name, found) for name, found in _interleaved(cases).items()}
        if PEERS:
            ratio = costs["DSPy acall from its disk cache"] / costs["dspy_stream, file to file"]
            bar("DSPy's disk cache / ours, CPU per row", ratio, 20.0, least=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def memory(bench: Bench) -> None:
    print("\nShort rows through a model that answers at once")
    small = bench.case("engine", rows=10_000, concurrency=256, how="noop")
    large = bench.case("engine", rows=1_000_000, concurrency=256, how="noop")
    line("10,000 rows", [small])
    line("1,000,000 rows", [large])
    bar("growth of the peak, MB", large["peak_mb"] - small["peak_mb"], 50.0)


def imports(_bench: Bench) -> None:
    print("\nImport, seconds of CPU (median of 11 processes)")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    found = {}
    for name in ("dspy_stream", "httpx"):
        code = f"import time; a=time.process_time(); import {name}; print(time.process_time()-a)"
        times = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(11)
        ]
        found[name] = statistics.median(times)
        print(f"  import {name:12s} {found[name]:.3f}")
    bar("import dspy_stream / import httpx", found["dspy_stream"] / found["httpx"], 0.25 / 0.34)


def streams(_bench: Bench) -> None:
    rate, tokens = 50, 300
    print(f"\nToken streams, {rate} tokens a second each, {tokens} tokens")
    bench = Bench("tokens.py")
    try:
        for rows, how, transport in (
            (200, "model", "aiohttp"),
            (200, "model", "pyreqwest"),
            (1000, "model", "aiohttp"),
            (1000, "model", "pyreqwest"),
            (200, "program", "aiohttp"),
            (1000, "program", "aiohttp"),
        ):
            served = bench.served()
            run = bench.case(
                "streams",
                path=f"{rate}/{tokens}",
                rows=rows,
                concurrency=rows,
                how=how,
                transport=transport,
                rate=str(rate),
                tokens=str(tokens),
            )
            name = f"{rows:,} streams, {how}, {transport}"
            print(
                f"  {name:34s} {run['cpu'] / run['tokens'] * 1e6:5.1f} us CPU/token, "
                f"{run['cpu'] / run['wall']:.2f} of the core "
                f"(server {(bench.served() - served) / run['wall']:.2f} of its own), "
                f"late by {run['p50'] * 1e3:.0f} ms (median), {run['p99'] * 1e3:.0f} ms (p99)",
                flush=True,
            )
            if transport == "aiohttp":
                bar(f"share of the ideal rate, {name}", run["ideal"] / run["wall"], 0.9, least=True)
                bar(f"p99 lag in seconds, {name}", run["p99"], 0.25)
    finally:
        bench.close()


def limited(_bench: Bench) -> None:
    rate = 50
    print(f"\nA server that allows {rate} requests a second, 256 rows in flight, nothing said of it")
    bench = Bench("allowance.py")
    try:
        for name, kind, burst in (
            ("bucket of 10", "bucket", 10),
            ("bucket of 50", "bucket", 50),
            ("a second's window", "window", 0),
        ):
            run = bench.case(
                "limited",
                path=f"{kind}/{rate}/{burst}",
                rows=40 * rate,
                concurrency=256,
                rate=str(rate),
                burst=str(burst),
            )
            line(name, [run])
            bar(f"share of what is allowed, {name}", run["share"], 0.95, least=True)
            bar(f"requests refused, %, {name}", 100 * run["wasted"], 2.0)
    finally:
        bench.close()


def compose(bench: Bench) -> None:
    rows, parts = 20_000, 3
    print(f"\nA pipeline of {parts} over a model that answers at once, {rows:,} rows")
    cases = {
        name: lambda how=how: bench.case("compose", rows=rows, concurrency=64, how=how)
        for name, how in (("as one operator", "whole"), ("an operator for each part", "parts"))
    }
    costs = {name: line(name, found) for name, found in _interleaved(cases).items()}
    added = (costs["an operator for each part"] - costs["as one operator"]) / parts
    bar("added by an operator, us a row a part", added, 60.0)
    latency = 0.2
    print(f"\nA fork of {parts}, {latency} s a call")
    for name, how, count in (
        ("called row by row", "fork", 20),
        ("a traced forward", "traced", 20),
        ("as operators, 64 in flight", "forked", 640),
    ):
        run = bench.case("compose", rows=count, concurrency=64, how=how, latency=str(latency))
        line(name, [run])
        # Row by row one call's time is the least; in a flow as many calls run as are allowed.
        ideal = latency * (count if how != "forked" else -(-count // 64))
        bar(f"time / that of one call, {name}", run["wall"] / ideal, 1.5)


def chain(bench: Bench) -> None:
    print("\nChainOfThought, eight demos, four typed outputs, a stub that answers at once")
    cases: dict[str, Any] = {
        "dspy_stream, called": lambda: bench.case("chain", rows=10_000, concurrency=1, how="ours"),
        "dspy_stream, a step of a flow": lambda: bench.case("chain", rows=10_000, concurrency=1, how="flow"),
    }
    if PEERS:
        cases["DSPy, called"] = lambda: bench.case("chain", rows=500, concurrency=1, python=PEERS, how="dspy")
    costs = {name: line(name, found) for name, found in _interleaved(cases).items()}
    bar("us CPU a row, called", costs["dspy_stream, called"], 100.0)
    if PEERS:
        bar("DSPy / ours", costs["DSPy, called"] / costs["dspy_stream, called"], 10.0, least=True)


def dspy_operator(bench: Bench) -> None:
    if not PEERS:
        return
    print("\nAn unchanged dspy.Predict: by itself, and as a step of a flow, file to file")
    rows, concurrency = 1500, 64
    for model, suffix in (("over HTTP", ""), ("a model that answers at once", "-stub")):
        print(f" {model}")
        alone = (
            {"case": "dspy_operator", "how": "acall-stub"}
            if suffix
            else {"case": "dspy_calls", "how": "acall"}
        )
        cases: dict[str, Any] = {}
        for name, given in (
            ("DSPy acall", alone),
            ("as a step, inline", {"case": "dspy_operator", "how": f"inline{suffix}"}),
            ("as a step, a thread a row", {"case": "dspy_operator", "how": f"thread{suffix}"}),
        ):
            cases[name] = lambda g=given: bench.case(
                g["case"], rows=rows, concurrency=concurrency, python=PEERS, how=g["how"]
            )
        costs = {name: line(name, found) for name, found in _interleaved(cases).items()}
        # A step has a journal, and a file at both ends.
        ratio = costs["as a step, inline"] / costs["DSPy acall"]
        bar("CPU as a step / DSPy alone", ratio, 1.25 if suffix else 1.0)


def transports(_bench: Bench) -> None:
    """Those that are installed here; ``python -m tests.bench.transports`` says more."""
    print("\nTransports", flush=True)
    subprocess.run([sys.executable, "-m", "tests.bench.transports"], check=True)


CASES = {
    "chain": chain,
    "dspy": dspy_operator,
    "cpu": cpu_per_row,
    "limited": limited,
    "tail": heavy_tail,
    "rerun": rerun,
    "memory": memory,
    "streams": streams,
    "compose": compose,
    "import": imports,
    "transports": transports,
}


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    if unknown := [name for name in wanted if name not in CASES]:
        raise SystemExit(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    if not PEERS:
        print("PEERS is not set: DSPy is not compared (PEERS=/path/to/venv/bin/python make bench)")
    bench = Bench()
    try:
        for name in wanted:
            CASES[name](bench)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
