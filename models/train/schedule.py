"""Plans a run: its length, learning rate and chunk lengths."""

from dataclasses import dataclass

from porestream.models.train.state import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Warm-up, then a constant rate, then linear annealing to zero.

    Attributes
    ----------
    rate
        The learning rate between warm-up and annealing.
    samples, minutes
        Length of the run, in samples seen or in minutes; exactly one is set.
    warm_up_steps
        Number of steps over which the rate rises.
    anneal
        Share of the run, at its end, in which the rate falls to zero.
    chunk_samples
        Chunk lengths for equal parts of the run; short ones come first, because they train faster.
    begun
        Progress at which the run began.
    """

    rate: float
    samples: float | None
    minutes: float | None
    warm_up_steps: int
    anneal: float
    chunk_samples: tuple[int, ...]
    begun: Progress

    def done(self, progress: Progress) -> float:
        """Return the share of the run that is done; 1 or more means that it is complete."""
        if self.samples is not None:
            return (progress.seen - self.begun.seen) / self.samples
        assert self.minutes is not None
        return (progress.seconds - self.begun.seconds) / (60 * self.minutes)

    def rate_at(self, done: float, steps: int) -> float:
        """Return the learning rate of a step; `steps` is how many the whole training made before it."""
        warm = min(1.0, (steps - self.begun.steps + 1) / self.warm_up_steps)
        falling = min(1.0, max(0.0, 1 - done) / self.anneal) if self.anneal > 0 else 1.0
        return self.rate * warm * falling

    def chunk_samples_at(self, done: float) -> int:
        """Return the chunk length of a step."""
        return self.chunk_samples[min(int(done * len(self.chunk_samples)), len(self.chunk_samples) - 1)]
