"""Constants for strand speed, signal noise, and the conversion of table units to pA.

They were fitted to 22 real R10.4.1 reads (LSK114, 4 kHz), force-aligned to the levels of `pore.PoreModel`. They have
their own module so that the command line can use them without importing torch and numba.
"""

from dataclasses import dataclass, replace

PA_PER_UNIT, PA_PER_UNIT_SD = 22.5, 0.7
PA_AT_ZERO, PA_AT_ZERO_SD = 97.5, 3.5
"""pA = PA_PER_UNIT * table units + PA_AT_ZERO: means over real reads, and standard deviations between reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalNoise:
    """Everything random in a signal. A table unit is about 22.5 pA.

    Attributes
    ----------
    speed_bases_per_s
        Mean speed of reads, in bases per second.
    speed_sd
        Relative standard deviation of the speed between reads; each stays within 25% of the mean.
    dwell_log_sd
        Standard deviation of a base's log dwell time around the pore model's prediction.
    stall_share, stall_mean_s
        Share of bases at which the strand stalls, and the mean of the (exponential) extra time in seconds.
    event_sd_units
        Standard deviation of a base's level around the pore model's, drawn at every visit, in table units.
    event_outlier_share, event_outlier_factor
        Share of bases whose level is further off, and how many times further.
    sample_sd_factor
        Factor on the pore model's standard deviation of samples within a base.
    sample_log_sd
        Standard deviation of the log of that factor between bases.
    correlated_share, correlation
        Share of the samples' variance that is an AR(1) process, and its correlation from sample to sample.
    read_log_sd
        Standard deviation, between reads, of the log of a factor on event_sd_units and of one on sample_sd_factor.
    wander_sd_units, wander_time_s
        A slow AR(1) wander of the baseline: standard deviation in table units, time constant in seconds.
    drift_sd_units
        Standard deviation, between reads, of a linear drift over the whole read, in table units.
    spike_share, spike_units
        Share of samples with a spike, and the range from the largest negative to the largest positive in table units.
    """

    speed_bases_per_s: float = 392.0
    speed_sd: float = 0.10
    dwell_log_sd: float = 0.65
    stall_share: float = 1 / 4000
    stall_mean_s: float = 0.1
    event_sd_units: float = 0.015
    event_outlier_share: float = 0.06
    event_outlier_factor: float = 5.0
    sample_sd_factor: float = 0.85
    sample_log_sd: float = 0.4
    correlated_share: float = 0.7
    correlation: float = 0.5
    read_log_sd: float = 0.20
    wander_sd_units: float = 0.022
    wander_time_s: float = 0.0625
    drift_sd_units: float = 0.02
    spike_share: float = 1e-4
    spike_units: float = 10.0

    def scaled(self, factor: float) -> "SignalNoise":
        """Return a copy with `factor` times the current noise; times and drift are unchanged."""
        return replace(
            self,
            event_sd_units=self.event_sd_units * factor,
            sample_sd_factor=self.sample_sd_factor * factor,
            wander_sd_units=self.wander_sd_units * factor,
            spike_units=self.spike_units * factor,
        )
