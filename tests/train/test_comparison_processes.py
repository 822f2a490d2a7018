"""The processes of a comparison: what they tell, how they end, and that they run at once."""

import sys
from pathlib import Path

import pytest

from mmm_train.comparison import processes
from mmm_train.comparison.processes import Processes

KILLED = "ended by SIGKILL. The system may have run out of memory: lower --jobs, or train.batch with another --out."
PRINT = 'import sys; sys.stdin.readline(); print(\'{"event": "step", "step": 1}\', flush=True); '


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", KILLED),
        ("import os; os.abort()", "ended by SIGABRT."),
        ("sys.exit('a\\n  no luck \\n\\n')", "no luck"),
        ("sys.exit(3)", "ended with status 3."),
    ],
    ids=["killed", "aborted", "message", "silent"],
)
def test_a_process_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", PRINT + code])
    with Processes() as running:
        process = running.start({}, tmp_path / "log")
        events = [running.next_event() for _ in range(3)]
        assert not running.running
    assert events == [(process, "step", {"step": 1}), (process, "failed", {"reason": reason}), (process, "ended", {})]


def test_a_process_is_asked_to_stop_by_the_end_of_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = PRINT + "sys.stdin.read(); print('{\"event\": \"x\"}\\n' * 9999, end='', flush=True); open('stopped', 'w')"
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.chdir(tmp_path)
    with Processes() as running:
        process = running.start({}, tmp_path / "log")
        running.next_event()
    assert process.process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["stopped"]


def test_processes_run_at_once_and_stop_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes its name, and goes on once it sees the other's: one after the other they would wait for ever."""
    meet = "open(name, 'w').close(); [None for _ in iter(lambda: os.path.exists(other), True)]; print(tell, flush=True)"
    code = f"""import os, sys, json
name, other = json.loads(sys.stdin.readline())
tell = json.dumps({{"event": "met", "name": name}})
{meet}
sys.stdin.read()
open(name + "-stopped", "w").close()
"""
    monkeypatch.setattr(processes, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.chdir(tmp_path)
    with Processes() as running:
        for pair in (["one", "two"], ["two", "one"]):
            running.start(pair, tmp_path / f"{pair[0]}.log")
        met = [running.next_event()[1:] for _ in range(2)]
    assert sorted(values["name"] for event, values in met if event == "met") == ["one", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-stopped", "two", "two-stopped"]
