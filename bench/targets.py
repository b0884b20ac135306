"""What the figures are held against: each target as measured / wanted, and whether it holds. A figure that was not
taken is reported as not measured, never as held."""

GROWTH_FLOOR_BYTES = 8 * 1024 * 1024  # a backlog that moves by less than this is flat whatever its shape


def backlog_growth(samples):
    """Mean backlog of the last third of a window minus that of the third before it, in bytes. The first third is left
    out: the server has just begun to have work."""
    if len(samples) < 6:
        return None
    third = len(samples) // 3
    before, last = samples[third : 2 * third], samples[2 * third :]
    return sum(last) / len(last) - sum(before) / len(before)


def backlog_is_flat(samples):
    growth = backlog_growth(samples)
    if growth is None:
        return None
    third = len(samples) // 3
    before = samples[third : 2 * third]
    return growth <= max(GROWTH_FLOOR_BYTES, 0.2 * sum(before) / len(before))


class Targets:
    def __init__(self):
        self.rows = []

    def at_most(self, name, measured, limit, unit):
        self._add(name, measured, limit, unit, "<=", None if measured is None or limit is None else measured <= limit)

    def at_least(self, name, measured, limit, unit):
        self._add(name, measured, limit, unit, ">=", None if measured is None or limit is None else measured >= limit)

    def true(self, name, measured, note):
        self.rows.append({"target": name, "measured": note, "limit": "", "unit": "", "relation": "", "holds": measured})

    def _add(self, name, measured, limit, unit, relation, holds):
        self.rows.append({"target": name, "measured": measured, "limit": limit, "unit": unit, "relation": relation,
                          "holds": holds})

    def print(self):
        print(f"\n{'target':58} {'measured':>12} {'wanted':>15}  holds")
        for row in self.rows:
            wanted = f"{row['relation']} {figure(row['limit'])} {row['unit']}".strip() if row["relation"] else ""
            holds = {True: "yes", False: "NO", None: "not measured"}[row["holds"]]
            measured = row["measured"] if isinstance(row["measured"], str) else figure(row["measured"])
            print(f"{row['target']:58} {measured:>12} {wanted:>15}  {holds}")


def figure(value):
    if value is None:
        return "-"
    if isinstance(value, bool) or isinstance(value, int) or isinstance(value, str):
        return str(value)
    magnitude = abs(value)
    return f"{value:.0f}" if magnitude >= 1000 else f"{value:.1f}" if magnitude >= 100 else f"{value:.3g}"


def scaled(value, factor):
    return None if value is None else value * factor


def evaluate(report):
    """Targets of the project, from a report of tools/bench."""
    targets = Targets()
    cells = {(cell["server"], cell["connections"]): cell for cell in report.get("w1", [])}

    def cell(server, connections, field):
        return cells.get((server, connections), {}).get(field)

    targets.at_least("64 connections, strict: turns/s", cell("strict", 64, "turns_per_s"), 20_000, "/s")
    targets.at_most("64 connections, strict: CPU per turn", cell("strict", 64, "server_cpu_ms_per_turn"), 0.07, "ms")
    targets.at_most("64 connections, strict: syncs per turn, 1.2 x floor", cell("strict", 64, "syncs_per_turn"),
                    scaled(cell("floor-buffered", 64, "syncs_per_turn"), 1.2), "")
    targets.at_most("64 connections, strict: written per turn",
                    scaled(cell("strict", 64, "device_bytes_per_turn"), 1 / 1024), 4, "KB")
    samples = cell("strict", 64, "backlog_samples") or []
    flat, growth = backlog_is_flat(samples), backlog_growth(samples)
    targets.true(f"64 connections, strict: backlog flat over {figure(cell('strict', 64, 'seconds'))} s", flat,
                 "-" if growth is None else f"{growth / 2**20:+.1f} MB")
    targets.at_least("64 connections, strict: length of the window", cell("strict", 64, "seconds"), 60, "s")
    for mode in ("strict", "pipelined"):
        targets.at_most(f"1 connection, {mode}: p50", cell(mode, 1, "p50_ms"), 0.8, "ms")
        targets.at_most(f"1 connection, {mode}: written per turn, 1.2 x floor",
                        scaled(cell(mode, 1, "device_bytes_per_turn"), 1 / 1024),
                        scaled(cell("floor-buffered", 1, "device_bytes_per_turn"), 1.2 / 1024), "KB")
        targets.at_most(f"256 connections, {mode}: p99, 3 x p50", cell(mode, 256, "p99_ms"),
                        scaled(cell(mode, 256, "p50_ms"), 3), "ms")

    growth_run = report.get("w2", {})
    ages = {age["old_turn"] // 1000: age for age in growth_run.get("ages", [])}
    for thousands in (1, 10):
        # Compared from this turn on, each old turn beside a young session's (turns 11 to 30) in the same moments.
        targets.at_most(f"turn {thousands},000 against turn 10: time", ages.get(thousands, {}).get("ratio"), 1.05, "x")
    targets.at_most("kept per turn of one session (LMDB)", scaled(growth_run.get("kept_bytes_per_turn"), 1 / 1024), 2, "KB")

    crash = report.get("w3", {})
    targets.at_most("first answer after kill -9 under load", crash.get("recovery_s"), 0.3, "s")
    targets.at_least("log tail at the kill", scaled(crash.get("backlog_at_kill"), 2**-20), 64, "MB")
    for field in ("acknowledged_lost", "acknowledged_unfinished", "recorded_twice", "tool_results_twice"):
        targets.at_most(f"kill -9: {field.replace('_', ' ')}", crash.get("verdict", {}).get(field), 0, "")
    in_flight = crash.get("verdict", {})
    targets.at_least("kill -9: recorded in-flight turns that finished", in_flight.get("in_flight_finished"),
                     in_flight.get("in_flight_recorded"), "")

    idle = report.get("w4", {})
    targets.at_least("idle sessions", idle.get("sessions"), 100_000, "")
    targets.at_most("idle session: anonymous memory", idle.get("anonymous_kb_per_session"), 0.2, "KB")
    targets.at_most("idle session: allocated disk", idle.get("disk_kb_per_session"), 2.5, "KB")
    return targets
