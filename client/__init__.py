"""The public API for instruments and lab pipelines: sources of reads, the client, and writers of records."""

from porestream.client.client import BasecallClient, SyncBasecallClient
from porestream.client.opening import ServerLost, ServerRefused, StreamOptions
from porestream.client.outputs.writers import OutputSettings, RecordWriter
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
from porestream.client.sources.pod5_source import Pod5Source

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
