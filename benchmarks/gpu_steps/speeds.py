"""How fast each kernel is by itself: decoded bases and alignment cells a second."""

from kernel_check import speeds

from gpu_steps.common import arguments, say
from porestream.kernels.device import find_kernel_device


def main() -> None:
    options = arguments()
    for speed in speeds(find_kernel_device(options.device), options.small):
        say(speed.name, **{speed.unit: round(speed.figure, 3)})


if __name__ == "__main__":
    main()
