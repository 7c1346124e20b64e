"""Every callback of CodeCarbon's dashboard over files of ours, as a browser asks for them.

``python -m benchmarks.carbonboard FILE…`` in an environment with ``codecarbon[carbonboard]``; each file is shown by
itself and all of them as one. Prints a line per file and ends with 1 if a callback does not answer 200. It works in the
folder of the installed packages, because the dashboard opens the map of Canada by a relative path.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

State = dict[tuple[str, str], Any]


def show(frame: Any) -> tuple[dict[str, int], State]:
    """Return the status that each callback answers, and what the page shows, over all projects of a table."""
    board = importlib.import_module("codecarbon.viz.carbonboard").render_app(frame)
    client = board.server.test_client()
    callbacks = client.get("/_dash-dependencies").get_json()
    answers: dict[str, int] = {}
    state: State = {}
    for project in frame.project_name.unique():
        state = {("project_name", "value"): str(project), ("energy_type", "value"): "fossil"}
        waiting = list(callbacks)
        while ready := [one for one in waiting if all(_key(put) in state for put in one["inputs"])]:
            for callback in ready:
                waiting.remove(callback)
                answers[f"{project}: {callback['output']}"] = _ask(client, callback, state)
        answers |= {f"{project}: {one['output']}": 0 for one in waiting}
    return answers, state


def _key(put: dict[str, str]) -> tuple[str, str]:
    return put["id"], put["property"]


def _ask(client: Any, callback: dict[str, Any], state: State) -> int:
    """Call one callback, put what it answers into ``state``, and return its status."""
    output = callback["output"]
    names = [name.rsplit(".", 1) for name in output.strip(".").split("...")]
    outputs = [{"id": name, "property": what} for name, what in names]
    inputs = [{**put, "value": state[_key(put)]} for put in callback["inputs"]]
    body = {"output": output, "outputs": outputs if output.startswith("..") else outputs[0], "inputs": inputs}
    answer = client.post("/_dash-update-component", data=json.dumps(body), content_type="application/json")
    if answer.status_code == 200:
        for name, values in answer.get_json()["response"].items():
            state.update({(name, what): value for what, value in values.items()})
    return int(answer.status_code)


def main(files: list[str]) -> int:
    """Show the files, and print what their pages say."""
    pandas = importlib.import_module("pandas")
    frames = {name: pandas.read_csv(name) for name in files}
    if len(frames) > 1:
        frames["all of them"] = pandas.concat(frames.values(), ignore_index=True)
    failed = 0
    packages = Path(importlib.import_module("codecarbon").__file__ or "").parents[1]
    with chdir(packages):
        for name, frame in frames.items():
            answers, state = show(frame)
            bad = {callback: status for callback, status in answers.items() if status != 200}
            failed += len(bad)
            place = state.get(("project_infrastructure_location", "children"))
            print(f"{name}: {len(answers) - len(bad)} of {len(answers)} callbacks answer 200; place: {place}", *bad)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
