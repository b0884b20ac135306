#!/usr/bin/env python3
"""Measures the inference plane in one run: the raw device beside its matrix products (and beside llama.cpp, where npm has
it), model steps through the whole plane, and the scheduler's decisions. Holds the figures against the project's targets.

  bench/inference.py [--bin build/release/bin] [--package DIR] [--no-peer] [--page FILE] [--out FILE] [--check]

About two minutes; wants a quiet machine. The weights are random: what is measured is arithmetic and scheduling.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True

from page import table  # noqa: E402
from targets import figure  # noqa: E402

TIMES_LLAMA = {("15M", "decode", 1): 3, ("15M", "decode", 8): 7, ("15M", "decode", 32): 7, ("15M", "prefill", 1): 1,
               ("110M", "decode", 1): 1.1, ("110M", "decode", 8): 3, ("110M", "decode", 32): 3.5, ("110M", "prefill", 1): 1}
PRODUCTS_SHARE = 0.6
DECISION_US = 1000


def run(command, **more):
    return subprocess.run([str(word) for word in command], check=True, text=True, **more)


def measure(options):
    report = {"machine": f"{os.cpu_count()} cores ({processor()})", "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="mainstay_inference_") as scratch:
        scratch = Path(scratch)
        for model in ("15M", "110M"):
            at = scratch / "decode.json"
            peer = [sys.executable, HERE / "peer_llama_cpp.py", "--bin", options.bin, "--only", model, "--json", at]
            if options.package:
                peer += ["--package", options.package]
            if options.peer and subprocess.run([str(word) for word in peer], stdout=subprocess.DEVNULL).returncode == 0:
                report.setdefault("decode", []).extend(json.loads(at.read_text())["peer"])
            else:
                run([options.bin / "bench_decode", "--only", model, "--json", at], stdout=subprocess.DEVNULL)
                report.setdefault("decode", []).extend(json.loads(at.read_text())["decode"])
        at = scratch / "generation.json"
        run([options.bin / "bench_generation", "--json", at], stdout=subprocess.DEVNULL)
        report["generation"] = json.loads(at.read_text())
        said = run([options.bin / "bench_scheduler", "--rounds", "5"], capture_output=True).stdout
        report["scheduler"] = json.loads(said.strip().splitlines()[-1])
    return report


def processor():
    for line in open("/proc/cpuinfo", encoding="utf-8"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def targets(report):
    rows = []

    def add(name, measured, relation, limit, unit=""):
        holds = measured >= limit if relation == ">=" else measured <= limit
        rows.append((name, measured, relation, limit, unit, holds))

    for row in report["decode"]:
        where = f"{row['model']} {row['what']} at {row['batch']}"
        if "times_llama_cpp" in row:
            add(where + ", times llama.cpp", row["times_llama_cpp"], ">=", TIMES_LLAMA[row["model"], row["what"], row["batch"]])
        if row["what"] == "decode":
            add(where + ", share of the products alone", row["ratio"], ">=", PRODUCTS_SHARE)
    turns, batch = report["generation"]["turns"], report["generation"]["batch"]
    add("turn 200, first token, times the raw device", turns["ratio"], "<=", 1.2)
    add("the same after the session slept", turns["after_sleep_ratio"], "<=", 1.2)
    add("the same after a restart", turns["after_restart_ratio"], "<=", 1.2)
    add("tokens prefilled beyond the new ones", turns["new_tokens_worst"] - turns["new_tokens_per_turn"], "<=", 0)
    add("64 sessions at once, share of the raw rate", batch["share"], ">=", 0.8)
    add("one device's decision, 10,000 wait, 144 devices", report["scheduler"]["step_us_median"], "<=", DECISION_US, "us")
    return rows


def page(report, rows):
    lines = ["# Benchmarks of the inference plane", "",
             f"Made by `bench/inference.py` on {time.strftime('%Y-%m-%d %H:%M')}: {report['machine']}, load "
             f"{report['load']:.1f} before. Random weights, BF16, 2 threads, in one run. Best of many steps, and their median.", "",
             "## The raw device", ""]
    cells = []
    for row in report["decode"]:
        cells.append([row["model"], row["what"], row["batch"], figure(row["tokens_per_s"]), figure(row["tokens_per_s_median"]),
                      figure(row["products_only"]), f"{100 * row['ratio']:.0f} %", figure(row.get("llama_cpp")),
                      figure(row.get("llama_cpp_median")), f"{row['times_llama_cpp']:.1f}" if "times_llama_cpp" in row else "-"])
    lines += table(["model", "what", "sequences", "tokens/s", "median", "products alone", "share",
                    "llama.cpp", "its median", "times"], cells)
    lines += ["", "## Through the whole plane", ""]
    lines += table(["part", "figure", "value"],
                   [[part, name, figure(value)] for part, figures in report["generation"].items() for name, value in figures.items()])
    lines += ["", "## Decisions of the scheduler", ""]
    lines += table(["figure", "value"], [[name, figure(value)] for name, value in report["scheduler"].items() if name != "bench"])
    lines += ["", "## Targets", ""]
    lines += table(["target", "measured", "wanted", "holds"],
                   [[name, figure(measured), f"{relation} {figure(limit)} {unit}".strip(), "yes" if holds else "**no**"]
                    for name, measured, relation, limit, unit, holds in rows])
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=HERE.parent / "build/release/bin")
    parser.add_argument("--package", type=Path, help="where node-llama-cpp is or is to be installed")
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target does not hold")
    options = parser.parse_args()
    report = measure(options)
    rows = targets(report)
    text = page(report, rows)
    print(text)
    if options.page:
        options.page.write_text(text)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if options.check and not all(row[-1] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
