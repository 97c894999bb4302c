"""An emulator that changes the kernels which it compiles: a test that can't tell them from ours is no test."""

from dataclasses import dataclass
from typing import Any

from porestream.kernels.device import EmulatedDevice, Module


@dataclass(frozen=True)
class AlteredDevice(EmulatedDevice):
    """Compiles with one passage of the source, at its `place`-th occurrence in a kernel, replaced."""

    kernel: str = ""
    passage: str = ""
    place: int = 0
    by: str = ""

    def compile(self, code: str, options: Any, file: str) -> Module:
        start = code.index(f"{self.kernel}(") if self.kernel else 0
        before, *rest = code[start:].split(self.passage)
        assert len(rest) > self.place, "the source has changed: the test's defect with it"
        rest.insert(0, before)
        parts = self.passage.join(rest[: self.place + 1]), self.passage.join(rest[self.place + 1 :])
        return super().compile(code[:start] + self.by.join(parts), options, file)
