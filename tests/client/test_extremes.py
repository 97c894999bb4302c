"""Whatever numbers an instrument or a server writes: a read is sent, and its records are text that SAM allows."""

import re
from dataclasses import replace
from uuid import UUID

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from made_up_results import IDENTITY, RUN_A, SEQUENCES, make_result

from porestream.client.outputs.records import header, records
from porestream.client.outputs.sequencing_summary import _read_values
from porestream.client.reads import ReadInfo, SignalRead
from porestream.client.wire import encode_read
from porestream.v1 import porestream_pb2 as pb

EDGES = {bits: st.sampled_from([0, 1, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1]) for bits in (8, 16, 32, 64)}
FLOATS = st.floats(width=32)  # infinities and NaN, too
INFOS = st.builds(
    ReadInfo,
    read_id=st.just(UUID(int=1)),
    run=st.builds(lambda rate: replace(RUN_A, sample_rate_hz=rate), EDGES[16]),
    offset_adc=FLOATS,
    scale_pa_per_adc=FLOATS,
    channel=EDGES[16],
    well=EDGES[8],
    read_number=EDGES[32],
    start_sample=EDGES[64],
    end_reason=st.text(max_size=5),
    file_name=st.text(max_size=5),
    open_pore_level_pa=FLOATS,
    pore_type=st.text(max_size=5),
)
TAG = re.compile(
    r"[A-Za-z][A-Za-z0-9]:([Ai]:-?\d+|A:[!-~]|f:[-+]?[0-9]*\.?[0-9]+(e[-+]?[0-9]+)?|Z:[ -~]*|B:c(,-?\d+)*)"
)
HEAD = header([RUN_A], IDENTITY, SEQUENCES)


@given(INFOS)
def test_every_read_that_a_pod5_can_hold_is_sent(info: ReadInfo) -> None:
    (chunk,) = encode_read(SignalRead(info, np.arange(100, dtype=np.int16))).chunks
    sent = pb.ReadChunk.FromString(chunk.SerializeToString())
    assert (sent.read_number, sent.start_sample) == (info.read_number, info.start_sample)


@given(INFOS, FLOATS, FLOATS, EDGES[32])
def test_every_result_has_its_records(info: ReadInfo, midpoint: float, qscore: float, trimmed: int) -> None:
    made = make_result(1)
    (part,) = made.parts
    result = replace(
        made,
        info=info,
        scaling_midpoint_pa=midpoint,
        scaling_dispersion_pa=-midpoint,
        parts=(replace(part, read_id=info.read_id, mean_qscore=qscore, trimmed_samples=trimmed),),
    )
    for record in records(result, HEAD, IDENTITY.model):
        tags = record.to_string().split("\t")[11:]
        assert all(TAG.fullmatch(tag) for tag in tags), tags
    assert "\t" not in "".join(_read_values(result, result.parts[0]).values())
