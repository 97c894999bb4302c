"""Makes the model card: what the model is, what it learned from, how good it is, and what it is not for."""

from collections.abc import Mapping, Sequence
from typing import Any

_TEMPLATE = """\
# {name}
Basecaller for nanopore DNA, R10.4.1 chemistry at 400 bases/s: 5 kHz signal, and 4 kHz signal interpolated to it.
{parameters:,} parameters, trained from random weights by this project (docs/inside/training.md says how); no vendor's
weights were used. It is there so that a fresh installation can call today's chemistry offline. **ONT's models call
better**: where accuracy matters and their licence suits, use those.

## Training
{samples_seen:,} samples of signal in {hours:.1f} hours, {date}.
{data}

## Evaluation
Whole reads called by the shipped basecaller. Identity: matches over alignment columns of the best minimap2 `map-ont`
hit against the truth. Quality: Phred of the mean error, as the base qualities predict it and as observed.

| reads | mapped | identity: median, mean | quartiles | mismatch, insertion, deletion | quality: predicted, observed |
| --- | --- | --- | --- | --- | --- |
{evaluations}

Homopolymers called with the right length:

| reads | {run_lengths} |
| --- |{run_rule}
{runs}

## Limits
- Only R10.4.1 DNA at 400 bases/s. Other pores, RNA and 260 bases/s give nonsense.
- It knows no modified bases: reads of strongly modified DNA are called worse.
- Real reads, where it saw any, were few and of few runs. What differs in others, it has not seen.
- Labels of real reads are another basecaller's output and have its errors.
- Adapters are called as a part of the read.
"""

_RUN_LENGTHS = range(2, 9)


def model_card(
    name: str, parameters: int, training: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> str:
    """Return the card as Markdown.

    Parameters
    ----------
    name
        The model's name.
    parameters
        Number of parameters that the model has learned.
    training
        The [training] table of its config.toml.
    evaluations
        Reports from `evaluate`, as loaded from their JSON.
    """
    return _TEMPLATE.format(
        name=name,
        parameters=parameters,
        samples_seen=training["samples_seen"],
        hours=training["training_seconds"] / 3600,
        date=training["date"],
        data="\n".join(f"- {line}" for line in training["data"]),
        evaluations="\n".join(_row(report) for report in evaluations) or "| not evaluated yet | | | | | |",
        run_lengths=" | ".join(str(length) for length in _RUN_LENGTHS),
        run_rule=" --- |" * len(_RUN_LENGTHS),
        runs="\n".join(_runs(report) for report in evaluations) or "| not evaluated yet |" + " |" * len(_RUN_LENGTHS),
    )


def _row(report: Mapping[str, Any]) -> str:
    low, high = report["quartiles"]
    return (
        f"| {report['name']} | {report['mapped']} of {report['reads']} "
        f"| **{report['median_identity']:.4f}**, {report['mean_identity']:.4f} | {low:.4f}-{high:.4f} "
        f"| {report['mismatch']:.4f}, {report['insertion']:.4f}, {report['deletion']:.4f} "
        f"| Q{report['predicted_quality']:.1f}, Q{report['observed_quality']:.1f} |"
    )


def _runs(report: Mapping[str, Any]) -> str:
    shares = {entry["length"]: f"{entry['right_share']:.0%} of {entry['runs']:,}" for entry in report["homopolymers"]}
    return f"| {report['name']} | " + " | ".join(shares.get(length, "-") for length in _RUN_LENGTHS) + " |"
