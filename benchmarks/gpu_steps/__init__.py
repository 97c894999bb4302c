"""The steps of benchmarks/gpu_first.py, a module each. What a step finds goes to standard output, a JSON line each."""
