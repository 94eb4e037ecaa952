"""What gpu_check.sh found, as results.md and results.json. Exit code 1 where a stage failed.

    python benchmarks/_gpu_summary.py DEVICE WORK OUT STAGE...

``WORK`` holds STAGE.result ("exit-code seconds") and STAGE.log of every stage that ran, and in bench/ what gpu_bench.py
wrote: its JSON files go into results.json, its Markdown below the table.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path

TIMED_OUT = (124, 137)


def last_line(log: Path) -> str:
    """What pytest, compute-sanitizer and the others end with."""
    lines = [line.strip("= ") for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def stage_rows(work: Path, stages: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for stage in stages:
        result = work / f"{stage}.result"
        if result.exists():
            code, seconds = map(int, result.read_text(encoding="utf-8").split())
            outcome = "passed" if code == 0 else "out of time" if code in TIMED_OUT else f"failed ({code})"
            said = last_line(work / f"{stage}.log")
            rows.append({"stage": stage, "outcome": outcome, "seconds": seconds, "said": said})
    return rows


def main(device: str, work: Path, out: Path, stages: list[str]) -> int:
    rows = stage_rows(work, stages)
    bench = sorted((work / "bench").rglob("*.json"))
    found = {
        "device": device,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "stages": rows,
        "bench": {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in bench},
    }
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {device}, {found['date']}", "", "| stage | outcome | seconds | its last line |", "|---|---|---|---|"]
    lines += [
        "| {stage} | {outcome} | {seconds} | {said} |".format_map({**row, "said": str(row["said"]).replace("|", "/")})
        for row in rows
    ]
    tables = [path.read_text(encoding="utf-8") for path in sorted((work / "bench").rglob("*.md"))]
    text = "\n".join([*lines, "", *tables])
    (out / "results.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)
    return 0 if rows and all(row["outcome"] == "passed" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
