"""What the kit assumes to be on the GPU's machine, and what it brings: change these lists for another machine.

Everything that the package requires is in one of them (tests/long/test_gpu_first.py).
"""

ASSUMED = ("torch", "numpy", "cupy", "pyarrow", "numba", "llvmlite", "grpc", "google.protobuf")
"""Modules that are there."""

CARRIED = {
    "annotated-types": "annotated_types",
    "cffi": "cffi",
    "click": "click",
    "cryptography": "cryptography",
    "deprecated": "deprecated",
    "edlib": "edlib",
    "google-crc32c": "google_crc32c",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "iso8601": "iso8601",
    "lib-pod5": "lib_pod5",
    "mappy": "mappy",
    "more-itertools": "more_itertools",
    "packaging": "packaging",
    "pod5": "pod5",
    "porestream": "porestream",
    "prometheus-client": "prometheus_client",
    "pycparser": "pycparser",
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "pydantic-settings": "pydantic_settings",
    "pysam": "pysam",
    "python-dotenv": "dotenv",
    "pytz": "pytz",
    "safetensors": "safetensors",
    "structlog": "structlog",
    "tqdm": "tqdm",
    "typing-extensions": "typing_extensions",
    "typing-inspection": "typing_inspection",
    "wrapt": "wrapt",
    "zstandard": "zstandard",
}
"""Distributions whose wheels the kit has, and the module that each is imported as."""
