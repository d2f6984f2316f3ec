"""One member of a group: the scenarios of the paper as transcripts, then what messages and shells may not do."""

from __future__ import annotations

from pathlib import Path

import pytest
from datadriven_runner import check_transcript, transcript_id, transcripts
from raft_group import Transcript


@pytest.mark.parametrize("path", transcripts("raft"), ids=transcript_id)
def test_transcript(path: Path) -> None:
    """What the cores say is what the transcript says; :mod:`datadriven_runner` checks it."""
    check_transcript(path, Transcript().execute)
