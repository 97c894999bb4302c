"""How a stream is opened: what it asks for, and which caller it gets."""

from dataclasses import dataclass, fields

import grpc
from google.protobuf.duration_pb2 import Duration

from porestream.client.channel import PLAINTEXT, Credentials, open_channel, service
from porestream.client.reads import RunInfo
from porestream.client.text import shown
from porestream.client.wire import encode_run
from porestream.v1 import porestream_pb2 as pb

_FACT_CHARACTERS = 100  # more than any product code has
_IDENTITY_BYTES = 300  # more than a caller's identity takes, without the requested names
MAX_RUN_ID_LENGTH = 256  # the servers' limit
FINAL = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""Statuses that a server will not change when asked again."""

PRIORITIES = {"live": pb.PRIORITY_LIVE, "standard": pb.PRIORITY_STANDARD, "bulk": pb.PRIORITY_BULK}
"""Scheduling classes by name."""


class ServerRefused(Exception):
    """The server will not serve this stream, however often it is asked, or it breaks the contract.

    The message is the server's, or says how it broke the contract.
    """


class ServerLost(Exception):
    """No server could be reached for too long, or connections kept breaking without a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What to ask of the server, and how patient to be.

    Attributes
    ----------
    model, reference, preset
        Names on the server; empty: its only model, no alignment, the preset that suits the model.
    min_mean_qscore
        Reads below it are FILTERED.
    emit_moves, emit_md
        Whether results carry moves and MD.
    no_trim
        Whether sequencing adapters stay in the sequence.
    allow_chemistry_mismatch
        Let the named model call runs that it is not for.
    heartbeat_s
        Longest silence of either side, 1-30 s.
    window_samples
        How far to send ahead of stored results, in samples. Each takes about 0.7 bytes of memory, compressed. None: as
        far as keeps the server busy, at least 8 million.
    credentials
        Whether to use TLS and a token.
    give_up_s
        How long to keep trying while no server can be reached, or connections keep breaking without a result. A server
        that is up but busy is waited for, with a warning after a minute and every five minutes.
    """

    model: str = ""
    reference: str = ""
    preset: str = ""
    priority: int = pb.PRIORITY_STANDARD
    min_mean_qscore: float = 0.0
    emit_moves: bool = False
    emit_md: bool = False
    no_trim: bool = False
    allow_chemistry_mismatch: bool = False
    heartbeat_s: float = 5.0
    window_samples: int | None = None
    give_up_s: float = 120.0
    credentials: Credentials = PLAINTEXT


def open_message(
    run: RunInfo, options: StreamOptions, expected: pb.CallerIdentity | None, reconnects: int = 0
) -> pb.StreamReadsRequest:
    """Make the first message of a stream."""
    heartbeat = Duration()
    heartbeat.FromMilliseconds(int(options.heartbeat_s * 1000))
    return pb.StreamReadsRequest(
        open=pb.OpenStream(
            run=encode_run(run),
            purpose=pb.STREAM_PURPOSE_RESULTS,
            options=_call_options(options),
            expected=expected,
            heartbeat_interval=heartbeat,
            reconnects=reconnects,
        )
    )


class AnotherCaller(Exception):
    """This server would call the run with a different caller than the one that started it."""


def _call_options(options: StreamOptions) -> pb.CallOptions:
    """Copy each option to the field of the same name."""
    names = {one.name for one in fields(options)}.intersection(pb.CallOptions.DESCRIPTOR.fields_by_name)
    return pb.CallOptions(**{name: getattr(options, name) for name in names})


def run_fault(run: RunInfo, options: StreamOptions, max_message_bytes: int) -> str:
    """Say why no server would open a stream for this run; empty if one might.

    Checked before sending, because a refusal does not say whether it concerns other runs as well, and an oversized
    message looks like a server that has no room right now.
    """
    why = ""
    if not run.run_id:
        why = "its id is empty"
    elif len(run.run_id) > MAX_RUN_ID_LENGTH:
        why = f"its id has {len(run.run_id):,} characters; servers accept at most {MAX_RUN_ID_LENGTH}"
    else:
        try:
            size = open_message(run, options, None, reconnects=(1 << 32) - 1).ByteSize()
            size += _IDENTITY_BYTES + len(options.model + options.reference + options.preset)
        except (ValueError, TypeError, ArithmeticError) as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if 0 < max_message_bytes < size:
                why = f"its metadata takes {size:,} bytes; the server accepts at most {max_message_bytes:,}"
    if not why:
        return ""
    return f"run not sendable: {shown(why, 200)} (run {shown(run.run_id)})"


async def resolve_caller(target: str, options: StreamOptions, run: RunInfo) -> pb.CallerIdentity:
    """Ask a server which caller it would use for this run. Send only the run's facts that decide this.

    Raises
    ------
    ServerRefused, ServerLost
        The server does not have what the options ask for, or does not answer.
    """
    async with open_channel(target, options.credentials) as channel:
        facts = pb.RunInfo(
            flow_cell_product_code=run.flow_cell_product_code[:_FACT_CHARACTERS],
            sequencing_kit=run.sequencing_kit[:_FACT_CHARACTERS],
            sample_rate_hz=run.sample_rate_hz,
        )
        request = pb.ResolveCallerRequest(run=facts, options=_call_options(options))
        try:
            response = await service(channel).ResolveCaller(request, timeout=4 * options.heartbeat_s)
        except grpc.aio.AioRpcError as error:
            kind = ServerRefused if error.code() in FINAL else ServerLost
            raise kind(f"{error.code().name}: {error.details()}") from error
    if response is None:
        raise breach(target, "it sent an invalid message")
    caller: pb.CallerIdentity = response.caller
    check_asked(target, caller, options)
    return caller


def check_asked(target: str, caller: pb.CallerIdentity, options: StreamOptions) -> None:
    for name in ("model", "reference", "preset"):
        asked, said = getattr(options, name), getattr(caller, name)
        if asked not in ("", "auto", said):
            raise breach(target, f"{name} {asked!r} was requested, but it offers {shown(said)!r}")


def breach(target: str, what: str) -> ServerRefused:
    return ServerRefused(f"{target} is not a porestream server, or is broken: {what}")


def check_caller(caller: pb.CallerIdentity, expected: pb.CallerIdentity) -> None:
    """Check that a server's caller is the expected one.

    Servers compare identities themselves, but one may be broken, or too old to know about the calling revision. Like
    servers, this ignores unset fields and the version.
    """
    names = {field.name for field, _ in expected.ListFields()} - {"version"} | {"calling_revision"}
    for name in sorted(names):
        theirs, mine = getattr(caller, name), getattr(expected, name)
        if theirs != mine:
            before, here = (shown(str(v.hex() if isinstance(v, bytes) else v), 80) for v in (mine, theirs))
            if name == "calling_revision" and not theirs:
                here = "missing, because the server is too old to have one"
            raise AnotherCaller(f"the caller differs: {name} was {before}, but here it is {here}")
