"""Write a POD5's reads as JSON lines, for programs without a POD5 library: `export_signal.py run.pod5 > reads.jsonl`.

The first line is the run, {"run": {...}}, with the fields of the contract's RunInfo in JSON's camelCase. Every other
line is a read: metadata, calibration, and its signal as int16 ADC counts, little-endian, in base64.
"""

import base64
import json
import sys
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from porestream.client import Pod5Source
from porestream.client.wire import encode_run


def main(path: Path) -> None:
    """Export one file, which must have only one run."""
    source = Pod5Source([path])
    if len(source.runs) != 1:
        reasons = "; ".join(fault.reason for fault in source.file_faults)
        sys.exit(f"{path}: {reasons or f'it has {len(source.runs)} runs; export files with one run each'}")
    (run,) = source.runs.values()
    facts = MessageToDict(encode_run(run))
    facts.pop("acquisitionStartTime", None)  # a Timestamp, which the example does not need
    print(json.dumps({"run": facts}))
    for read in source:
        info = read.info
        line = {
            "read_id": str(info.read_id),
            "channel": info.channel,
            "well": info.well,
            "read_number": info.read_number,
            "start_sample": info.start_sample,
            "end_reason": info.end_reason,
            "calibration": {
                "offsetAdc": info.offset_adc,
                "scalePaPerAdc": info.scale_pa_per_adc,
                "openPoreLevelPa": info.open_pore_level_pa,
            },
            "signal": base64.b64encode(read.signal_S.astype("<i2").tobytes()).decode(),
        }
        print(json.dumps(line))
    for fault in [*source.file_faults, *source.read_faults]:
        print(f"skipped: {fault}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
