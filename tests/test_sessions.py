"""Many sessions of the real server over WebSockets: every page is made, and what a session held does not grow."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sessions import PAGES, served, settled, visit
from tests.audited import audited, mode, said

A_SESSION = 3  # handles of the event loop that Streamlit keeps for each of the newest sessions, for two minutes


def test_ten_sessions_leave_no_handles_behind(tmp_path: Path) -> None:
    answers = said("data", "v", {"a": "cat", "b": "dog"}, "cat")
    run = audited(tmp_path / "run", [mode("crab", f"thing {n}", exemplars=[]) for n in range(12)], answers)
    with served(run.root) as (address, server):
        assert visit(address, 1, len(PAGES)).errors == 0
        start = server.num_fds()
        seen = visit(address, 10, len(PAGES))
        assert (len(seen.seconds), seen.errors) == (10 * len(PAGES), 0)
        assert settled(server, start + 10 * A_SESSION) <= start + 10 * A_SESSION
        more = visit(address, 10, 3 * len(PAGES))  # three times the pages, no more handles for each session
        assert more.errors == 0
        assert settled(server, start + 20 * A_SESSION) <= start + 20 * A_SESSION
        assert [file.path for file in server.open_files() if file.path.startswith(str(run.root))] == []
