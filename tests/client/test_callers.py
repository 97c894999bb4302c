"""Who calls which run: the one that its stream is told and no other, on a server with a model for each chemistry."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pysam
import pytest
from click.testing import CliRunner

from porestream.cli.main import main
from porestream.client import Pod5Source, ReadStatus, SyncBasecallClient
from porestream.server.edge import rpc
from porestream.server.metrics import STREAMS_OPENED
from porestream.server.reads import StreamFault
from porestream.v1 import porestream_pb2 as pb

OLD, NEW = "dna_r9.4.1_e8.1_fast@v9", "dna_r10.4.1_e8.2_400bps_fast@v4.1.0"
READS = 3


@pytest.fixture
def server(start_server, make_bundle, tmp_path: Path):  # type: ignore[no-untyped-def]
    return start_server(model=[make_bundle(tmp_path / "models" / name) for name in (OLD, NEW)])


@pytest.fixture
def runs(write_pod5: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of two runs, one of each chemistry."""
    rng = np.random.default_rng(1)
    signals = [rng.normal(500, 60, 4000).astype(np.int16) for _ in range(READS)]
    (tmp_path / "reads").mkdir()
    write_pod5(tmp_path / "reads/old.pod5", signals, ["run-old"])
    new = {"flow_cell_product_code": "FLO-MIN114", "sequencing_kit": "SQK-LSK114"}
    write_pod5(tmp_path / "reads/new.pod5", signals, ["run-new"], READS + 1, **new)
    return tmp_path / "reads"


def test_another_caller_after_a_break_is_tried_again(  # type: ignore[no-untyped-def]
    server, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a balancer, where the next server may be the one of before."""
    check, refused = rpc._check_expected, []

    def refuse_twice(expected: pb.CallerIdentity, actual: pb.CallerIdentity) -> None:
        if expected.model and len(refused) < 2:
            refused.append(expected.model)
            raise StreamFault("FAILED_PRECONDITION", "this server would call differently")
        check(expected, actual)

    monkeypatch.setattr(rpc, "_check_expected", refuse_twice)
    source = Pod5Source([runs / "old.pod5"])
    with SyncBasecallClient(server.address) as client:
        for run in source.runs.values():
            client._run(client._client.identify(run))
        assert len(list(client.call(source))) == READS
    assert refused == [OLD, OLD]


def test_no_reads_have_a_caller_too(server, write_pod5: Callable[..., Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    empty, output = write_pod5(tmp_path / "empty.pod5", []), tmp_path / "calls.bam"
    called = CliRunner().invoke(
        main, ["call", str(empty), "--server", server.address, "--model", OLD, "-o", str(output)]
    )
    assert called.exit_code == 0, called.output
    with pysam.AlignmentFile(str(output), check_sq=False) as sam:
        assert f"basecall_model={OLD} " in sam.header.to_dict()["PG"][0]["DS"]


def test_a_run_of_endless_facts_is_refused_by_name_and_the_others_are_called(  # type: ignore[no-untyped-def]
    server, runs: Path, write_pod5: Callable[..., Path], tmp_path: Path
) -> None:
    signals = [np.random.default_rng(1).normal(500, 60, 4000).astype(np.int16)]
    write_pod5(runs / "odd.pod5", signals, ["run-odd"], 100, sample_id="x" * (2 << 20))
    output = tmp_path / "calls.sam"
    called = CliRunner().invoke(main, ["call", str(runs), "--server", server.address, "-o", str(output)])
    assert "run not sendable: its metadata takes" in called.stderr
    assert "(run run-odd" in called.stderr
    assert sum(not line.startswith("@") for line in output.read_text().splitlines()) == 2 * READS


def opened() -> float:
    return sum(STREAMS_OPENED.labels(priority)._value.get() for priority in ("live", "standard", "bulk"))


def test_each_run_has_its_model_and_the_books_know_no_other(server, runs: Path) -> None:  # type: ignore[no-untyped-def]
    before = opened()
    source = Pod5Source([runs])
    with SyncBasecallClient(server.address) as client:
        results = list(client.call(source))
        callers = {run.run_id: client._client.caller_of(run).model for run in source.runs.values()}
    assert [result.status for result in results] == [ReadStatus.CALLED] * 2 * READS
    assert callers == {"run-old": OLD, "run-new": NEW}
    assert set(server.engine.ledger._runs) == {"run-old", "run-new"}
    assert opened() - before == 2
    groups = server.engine.ledger.groups()
    assert {model: books.called for (model, _), books in groups.items() if books.received} == {OLD: READS, NEW: READS}


def models_of(path: Path) -> dict[str, set[str]]:
    """Of each read group in a file what its @PG says, and what its records do."""
    with pysam.AlignmentFile(str(path), check_sq=False) as sam:
        head = sam.header.to_dict()
        programs = {line["ID"]: line for line in head["PG"]}
        found = {group["ID"]: {programs[group["PG"]]["DS"].split()[0], group["DS"].split()[1]} for group in head["RG"]}
        assert sorted(str(record.get_tag("RG")) for record in sam) == sorted(READS * list(found))
    return found


def test_one_file_of_both_names_who_called_what_and_is_resumed(  # type: ignore[no-untyped-def]
    server, runs: Path, tmp_path: Path
) -> None:
    both = {f"run-old_{OLD}": {f"basecall_model={OLD}"}, f"run-new_{NEW}": {f"basecall_model={NEW}"}}
    arguments = ["call", str(runs), "--server", server.address]
    output = tmp_path / "calls.bam"
    called = CliRunner().invoke(main, [*arguments, "-o", str(output)])
    assert called.exit_code == 0, called.output
    assert models_of(output) == both
    assert ", one for each chemistry" in called.stderr

    resumed = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "again.bam"), "--resume-from", str(output)])
    assert resumed.exit_code == 0, resumed.output
    assert f"{2 * READS} reads taken from" in resumed.stderr
    assert models_of(tmp_path / "again.bam") == both

    one = CliRunner().invoke(
        main, [*arguments, "--model", OLD, "--allow-chemistry-mismatch", "-o", str(tmp_path / "one.bam")]
    )
    assert one.exit_code == 0, one.output
    assert len({frozenset(said) for said in models_of(tmp_path / "one.bam").values()}) == 1
    refused = CliRunner().invoke(
        main, [*arguments, "-o", str(tmp_path / "never.bam"), "--resume-from", str(tmp_path / "one.bam")]
    )
    assert refused.exit_code == 1
    assert f"was made with basecall_model={OLD}, but this call has {NEW}" in refused.stderr
