"""Digests of records: they may change only together with the calling revision.

`make record-calling` writes those of this kind of machine, once the revision is raised.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from porestream.server.calling.revision import CALLING_REVISION

_FILE = Path(__file__).with_suffix(".json")


def check_digest(kind: str, records: Iterable[str]) -> None:
    """Fail where the records are not those that this revision has had; skip where a kind has no digest yet.

    Parameters
    ----------
    kind
        What the records depend on beside the revision, as the processor.
    records
        SAM lines.
    """
    digest = hashlib.sha256("\n".join(sorted(records)).encode()).hexdigest()
    recorded = json.loads(_FILE.read_text())
    is_recording = bool(os.environ.get("RECORD_CALLING"))
    if recorded["revision"] != CALLING_REVISION:
        assert is_recording, f"the calling revision is {CALLING_REVISION}: `make record-calling` takes its digests"
        recorded = {"revision": CALLING_REVISION, "digests": {}}
    known = recorded["digests"].get(kind)
    if known is None:
        if not is_recording:
            pytest.skip(f"revision {CALLING_REVISION} has no digest for {kind}: `make record-calling` takes it")
        recorded["digests"][kind] = digest
        _FILE.write_text(json.dumps(recorded, indent=2) + "\n")
    else:
        assert digest == known, (
            "results have changed: raise CALLING_REVISION in server/calling/revision.py, say there what changed, then "
            "`make record-calling`; or undo what changed them"
        )
