# SPDX-License-Identifier: Apache-2.0
"""What godwit's downtime is made of: what criu's logs of the dump and of the restore tell, and godwit's own --json."""

import json
import re
import threading

from common import three
from movers import measure

# A line of criu's log with the first text begins the stage; it lasts until the next that is found.  None: the end.
DUMP_MARKS = [
    ("Seized task", "dump: stop the tasks, look at mounts and sockets"),
    ("Collecting mappings", "dump: mappings"),
    ("Collected, longest area", "dump: files, parasite"),
    ("Dumping pages", "dump: pages"),
    ("Obtaining personality", "dump: the rest of the tasks"),
    ("Running post-dump scripts", None),
]
RESTORE_MARKS = [
    ("", "restore: start, images"),
    ("Forking task", "restore: build the tasks"),
    ("Switched to the restorer", "restore: memory"),
    ("Running post-restore scripts", "restore: the hook, decision"),
    ("Run late stage hook", "restore: let them run"),
    ("Tasks resumed", None),
]
BETWEEN = "all else: rest of the transfer, checks, start of criu"
PHASES = ["setup", "active", "device"]
FIELDS = ["downtime", "stages.dump", "stages.send", "stages.restore", "stages.commit", "rounds", "first-round.time",
          "first-round.transferred", "total-time", "ram.transferred"]


class KeptLogs:
    """Has criu's logs open before godwit removes them."""

    def __init__(self, a, b):
        self._wanted = {"dump": (a, "*/dump.log"), "restore": (b, "*/restore.log")}
        self._found = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _look(self):
        for name, (godwit, pattern) in self._wanted.items():
            if name in self._found:
                continue
            for path in godwit.host.path(godwit.workdir).glob(pattern):
                try:
                    self._found[name] = path.open()
                except FileNotFoundError:
                    pass  # gone already

    def _watch(self):
        while not self._over.wait(0.002):
            self._look()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._over.set()
        self._thread.join()
        self.texts = {name: file.read() for name, file in self._found.items()}
        for file in self._found.values():
            file.close()


def read_marks(log, marks):
    """{stage: milliseconds}, None for what the log does not tell, from the log of one criu."""
    lines = re.findall(r"^\((\d+\.\d+)\) (.*)", log, re.MULTILINE)
    times, at = [], 0
    for text, _ in marks:
        found = next((i for i in range(at, len(lines)) if text in lines[i][1]), None)
        times.append(None if found is None else float(lines[found][0]))
        at = at if found is None else found
    return {stage: None if begin is None or end is None else round((end - begin) * 1000, 1)
            for (_, stage), begin, end in zip(marks, times, times[1:])}


def read_phases(events):
    """How long each phase was the one that godwit told, in milliseconds."""
    times = {}
    for event, following in zip(events, events[1:]):
        times[event["status"]] = times.get(event["status"], 0) + following["total-time"] - event["total-time"]
    return {phase: times.get(phase) for phase in PHASES}


def read_numbers(last):
    """All numbers of godwit's last object, those inside its objects as outer.inner; None for those that should be there."""
    found = dict.fromkeys(FIELDS)

    def take(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                take(f"{prefix}{key}.", inner)
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                take(f"{prefix}{i}.", inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[prefix[:-1]] = value

    take("", last)
    return {name: value for name, value in found.items() if name not in ("code", "pid")}


def look_closely(tool, a, b, size, rate):
    """A move with criu's log at -v4, which takes some time of its own: the pause, and what is told of it."""
    with KeptLogs(a, b) as logs:
        pause, told = measure(tool, a, b, size, rate, "--", "-v4")
    stages = {**read_marks(logs.texts.get("dump", ""), DUMP_MARKS), **read_marks(logs.texts.get("restore", ""), RESTORE_MARKS)}
    known = [ms for ms in stages.values() if ms is not None]
    stages[BETWEEN] = round(pause - sum(known), 1) if len(known) == len(stages) else None
    objects = [json.loads(line) for line in told.out.splitlines()]
    return {"downtime_ms": round(pause, 1), "stages_ms": stages, "phases_ms": read_phases([o for o in objects if "status" in o]),
            "godwit": read_numbers(objects[-1])}


def sweep(tool, a, b, sizes, rate, runs, limit_ms):
    """For each size: the pauses, the limit, and a close look."""
    for size in sizes:
        low, median, high = three([measure(tool, a, b, size, rate)[0] for _ in range(runs)])
        yield {"size_mib": size, "dirty_mb_s": rate, "tool": "godwit", "runs": runs, "downtime_ms_min": low,
               "downtime_ms_median": median, "downtime_ms_max": high, "limit_ms": round(limit_ms(size), 1),
               "met": median <= limit_ms(size), "closely": look_closely(tool, a, b, size, rate)}


def print_table(rows):
    def line(name, values):
        cells = "".join(f"{'-' if v is None else format(v, '.1f') if isinstance(v, float) else v:>12}" for v in values)
        print(f"{name:56}{cells}")

    def group(key, name):
        print(name)
        keys = {stage: None for row in rows for stage in row["closely"][key]}
        for stage in keys:
            line(f"  {stage}", [row["closely"][key].get(stage) for row in rows])

    line("MiB", [row["size_mib"] for row in rows])
    line("downtime, ms, median", [row["downtime_ms_median"] for row in rows])
    line("  at most", [row["limit_ms"] for row in rows])
    line("with criu's log at -v4: downtime, ms", [row["closely"]["downtime_ms"] for row in rows])
    group("stages_ms", "made of, by criu's logs")
    group("phases_ms", "phases that godwit tells, ms")
    group("godwit", "godwit's own numbers")
