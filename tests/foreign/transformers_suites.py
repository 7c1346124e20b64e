"""Run transformers' own test mixins over our four classes, and count what comes of it.

    python tests/foreign/transformers_suites.py FOLDER [--write]

FOLDER holds transformers' ``tests`` package of the installed version: a checkout of its repository. Its sdist has the
top level of it only, without tests/generation, tests/utils and tests/exporters; those may be of a checkout nearby.
``transformers_suites.json`` keeps the counts, with the reason of every test that does not apply; a run must give those,
or more passed, and ``--write`` replaces them and the table in docs/huggingface.md. Needs what requirements-peers.lock
has, pytest and parameterized.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "huggingface.md"
BEGIN, END = "<!-- suites -->\n", "<!-- end of suites -->\n"
COUNTS = HERE / "transformers_suites.json"
KINDS = ("transformer", "retnet", "longnet", "ebt")


@contextmanager
def workplace(suite: Path) -> Iterator[Path]:
    """Make a folder in which ``tests`` is transformers' package, and ours one file beside it."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for entry in ("tests", "utils"):
            if (suite / entry).is_dir():
                (place / entry).symlink_to((suite / entry).resolve())
        (place / "test_perjoule.py").symlink_to((HERE / "transformers_models.py").resolve())
        yield place


def run(suite: Path, kind: str) -> dict[str, Any]:
    """Run every test over one class: how many passed, which failed, and which do not apply, by their reason."""
    with workplace(suite) as place:
        report = place / "report.xml"
        options = ["-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-W", "ignore", "--tb=short"]
        environment = {
            **os.environ,
            "KINDS": kind,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", "pytest", *options, "test_perjoule.py", f"--junitxml={report}"]
        subprocess.run(command, cwd=place, env=environment, check=False)
        return counted(report)


def counted(report: Path) -> dict[str, Any]:
    """Read pytest's own report."""
    passed, failed, skipped = 0, set[str](), defaultdict[str, list[str]](list)
    for case in ET.parse(report).iter("testcase"):
        name = case.get("name", "")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(name)
        elif (reason := case.find("skipped")) is not None:
            skipped[reason.get("message", "")].append(name)
        else:
            passed += 1
    return {"passed": passed, "failed": sorted(failed), "not_applicable": {r: sorted(n) for r, n in skipped.items()}}


def table(found: dict[str, Any]) -> str:
    """Return the page's tables of the counts: what passed, and every test that does not apply, by its reason."""
    lines = [
        f"transformers {found['transformers']}:",
        "",
        "| class | passed | failed | do not apply |",
        "|---|---|---|---|",
    ]
    reasons = defaultdict[str, dict[str, set[str]]](lambda: defaultdict(set))
    for kind in KINDS:
        one = found[kind]
        skipped = sum(len(names) for names in one["not_applicable"].values())
        lines.append(f"| {kind} | {one['passed']} | {len(one['failed'])} | {skipped} |")
        for reason, names in one["not_applicable"].items():
            short = re.sub(r"<class '[\w.]+'>|\w+ForCausalLM|Perjoule\w+Config", "the class", reason)
            for name in names:  # those of one parameterised test are one
                reasons[short][re.sub(r"_\d+(_\w+)?$", "_…", name)].add(kind)
    lines += ["", "| reason, in transformers' words | tests |", "|---|---|"]
    for reason, tests in sorted(reasons.items()):
        shown = [
            f"`{test}`" + ("" if len(kinds) == len(KINDS) else f" ({', '.join(sorted(kinds))})")
            for test, kinds in sorted(tests.items())
        ]
        lines.append(f"| {reason} | {', '.join(shown)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, found: dict[str, Any]) -> str:
    """Return the page with these tables in place of its own."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table(found) + END + rest.partition(END)[2]


def main() -> int:
    """Run, compare and print; 1 if a test failed or fewer passed than before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    import transformers

    known = json.loads(COUNTS.read_text(encoding="utf-8")) if COUNTS.is_file() else {}
    found: dict[str, Any] = {
        "transformers": transformers.__version__,
        **{kind: run(given.suite, kind) for kind in KINDS},
    }
    bad = 0
    for kind in KINDS:
        one, before = found[kind], known.get(kind, {"passed": 0})
        skipped = sum(len(names) for names in one["not_applicable"].values())
        print(f"{kind}: {one['passed']} passed, {len(one['failed'])} failed, {skipped} do not apply")
        bad += bool(one["failed"]) or (not given.write and one["passed"] < before["passed"])
    if given.write and not bad:
        COUNTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
