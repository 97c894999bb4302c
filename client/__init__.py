"""What instruments and lab pipelines import: sources of reads, the client, and records of what comes back."""

from porestream.client.client import BasecallClient, SyncBasecallClient
from porestream.client.reads import (
    Alignment,
    CalledPart,
    CallerIdentity,
    ReadInfo,
    ReadResult,
    ReadStatus,
    RunInfo,
    ServerInfo,
    SignalRead,
)
from porestream.client.sources import Pod5Source
from porestream.client.stream import ServerLost, ServerRefused, StreamOptions
from porestream.client.writers import OutputSettings, RecordWriter

__all__ = [
    "Alignment",
    "BasecallClient",
    "CalledPart",
    "CallerIdentity",
    "OutputSettings",
    "Pod5Source",
    "ReadInfo",
    "ReadResult",
    "ReadStatus",
    "RecordWriter",
    "RunInfo",
    "ServerInfo",
    "ServerLost",
    "ServerRefused",
    "SignalRead",
    "StreamOptions",
    "SyncBasecallClient",
]
