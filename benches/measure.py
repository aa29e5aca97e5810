"""Runs a command, passes its output through, and appends one JSON line to a file: time, and memory by kind.

usage: measure.py LOG NAME -- COMMAND …

`anonymous_mib` is the peak of RssAnon, sampled every few milliseconds: memory of the process itself. `peak_mib` is VmHWM,
which counts the pages of mapped input files as well, as `/usr/bin/time -v` does; the kernel takes those back at will.
If the command's last line on stdout is JSON, it is kept as `result`.
"""

import json
import resource
import subprocess
import sys
import threading
import time

INTERVAL = 0.004  # seconds between samples


def main():
    log, name, separator, *command = sys.argv[1:]
    assert separator == "--", __doc__
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = {"RssAnon": 0, "VmHWM": 0}

    def watch():
        while process.returncode is None:
            try:
                with open(f"/proc/{process.pid}/status") as status:
                    for line in status:
                        key, _, value = line.partition(":")
                        if key in peak:
                            peak[key] = max(peak[key], int(value.split()[0]))
            except (FileNotFoundError, ProcessLookupError):
                return
            time.sleep(INTERVAL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    output = process.stdout.read()
    code = process.wait()
    wall = time.perf_counter() - began
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = {
        "name": name,
        "wall": round(wall, 4),
        "user": round(after.ru_utime - before.ru_utime, 3),
        "system": round(after.ru_stime - before.ru_stime, 3),
        "anonymous_mib": round(peak["RssAnon"] / 1024, 1),
        "peak_mib": round(peak["VmHWM"] / 1024, 1),
    }
    try:
        record["result"] = json.loads(output.strip().rsplit("\n", 1)[-1])
    except ValueError:
        sys.stdout.write(output)
    with open(log, "a") as lines:
        lines.write(json.dumps(record) + "\n")
    sys.exit(code)


main()
