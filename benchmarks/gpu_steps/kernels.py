"""Every kernel against the golden results, twice: a result that moves between the two is a race."""

import time

import numpy as np
from golden import load_case
from kernel_check import cases, difference

from gpu_steps.common import arguments, say
from porestream.kernels.device import find_kernel_device


def main() -> None:
    options = arguments()
    device = find_kernel_device(options.device)
    for case in cases(options.small):
        try:
            inputs, expected = load_case(options.kit, case.name)
            began_s = time.perf_counter()
            first, second = case.compute(device, inputs), case.compute(device, inputs)
        except Exception as error:  # noqa: BLE001  # the other kernels are looked at all the same
            say(case.name, ok=False, said=f"{type(error).__name__}: {error}"[-2000:])
            continue
        moves = not all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
        differs = difference(case, first, expected)
        said = "; ".join(filter(None, [differs, "two runs differ: a race" if moves else None])) or "as expected"
        say(case.name, ok=not differs and not moves, said=said, seconds=round(time.perf_counter() - began_s, 2))


if __name__ == "__main__":
    main()
