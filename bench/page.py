"""The report of tools/bench as a Markdown page, for docs/."""

from targets import evaluate, figure


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" + "--:|" * (len(columns) - 1)]
    return lines + ["| " + " | ".join(figure(value) for value in row) + " |" for row in rows]


def kilobytes(count):
    return None if count is None else count / 1024


def turns_table(cells):
    order = {"floor-buffered": 0, "floor-direct": 1, "strict": 2, "pipelined": 3}
    cells = sorted(cells, key=lambda cell: (cell["connections"], order.get(cell["server"], 9)))
    return table(["server", "connections", "turns/s", "p50 ms", "p99 ms", "CPU ms/turn", "load CPU ms/turn", "syncs/turn",
                  "KB to disk/turn", "seconds"],
                 [[cell["server"], cell["connections"], cell["turns_per_s"], cell.get("p50_ms"), cell.get("p99_ms"),
                   cell.get("server_cpu_ms_per_turn"), cell.get("own_cpu_ms_per_turn"), cell.get("syncs_per_turn"),
                   kilobytes(cell.get("device_bytes_per_turn")), cell["seconds"]] for cell in cells])


def targets_table(report):
    words = {True: "yes", False: "**no**", None: "not measured"}
    return table(["target", "measured", "wanted", "holds"],
                 [[row["target"], row["measured"], f"{row['relation']} {figure(row['limit'])} {row['unit']}".strip()
                   if row["relation"] else "", words[row["holds"]]] for row in evaluate(report).rows])


def page(report, command):
    machine = report["machine"]
    lines = ["# Benchmarks", "",
             f"Made by `{command}` on {machine['when']}: {machine['cpus']} cores ({machine['cpu']}), kernel "
             f"{machine['kernel']}, load {machine['load_before']:.1f} before. Load generator, server and bound share the "
             "machine and the disk; the CPU columns tell them apart. The model is scripted: what is measured is Mainstay.", ""]
    if report.get("w1"):
        lines += ["## Durable turns", "", "`floor-*` is the bound: four durable records a turn and nothing else, through "
                  "the page cache or past it. Strict: each step durable before the next begins.", ""]
        lines += turns_table(report["w1"]) + [""]
    if report.get("w2", {}).get("ranges"):
        lines += ["## One session growing", ""]
        lines += table(["turns", "p50 ms", "CPU ms/turn", "KB to disk/turn"],
                       [[f"{part['first_turn']} to {part['last_turn']}", part["p50_ms"], part["server_cpu_ms_per_turn"],
                         kilobytes(part.get("device_bytes_per_turn"))] for part in report["w2"]["ranges"]]) + [""]
    if report.get("w3"):
        crash = report["w3"]
        lines += ["## kill -9 under load", "", f"First answer {figure(crash.get('recovery_s'))} s after the kill, with a log "
                  f"tail of {crash.get('backlog_at_kill', 0) / 2**20:.0f} MB.", ""]
        lines += table(["what", "count"], [[name.replace("_", " "), value] for name, value in crash["verdict"].items()]) + [""]
    if report.get("w4"):
        idle = report["w4"]
        lines += ["## Idle sessions", ""]
        lines += table(["sessions", "anonymous KB each", "PSS KB each", "disk KB each", "of it LMDB"],
                       [[idle["sessions"], idle["anonymous_kb_per_session"], idle["pss_kb_per_session"],
                         idle["disk_kb_per_session"], idle["state_kb_per_session"]]]) + [""]
    lines += ["## Targets", ""] + targets_table(report)
    return "\n".join(lines) + "\n"
