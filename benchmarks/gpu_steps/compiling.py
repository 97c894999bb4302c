"""Compile every kernel in every form that is used, with the GPU's own NVRTC."""

import time

from kernel_forms import FORMS

from gpu_steps.common import arguments, say
from porestream.kernels.device import DeviceError, find_kernel_device
from porestream.kernels.source import load


def main() -> None:
    options = arguments()
    device = find_kernel_device(options.device)
    say("device", name=device.name, architecture=f"sm_{device.arch}")
    began_s = time.perf_counter()
    forms = FORMS[-2:] if options.small else FORMS
    for form in forms:
        try:
            load(device, form.source, form.kernel, **dict(macro.split("=") for macro in form.defines))
        except DeviceError as error:
            say(form.name, ok=False, said=str(error)[-2000:])
    say("all forms", forms=len(forms), seconds=round(time.perf_counter() - began_s, 1))


if __name__ == "__main__":
    main()
