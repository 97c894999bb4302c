# Two images: `docker build --target cpu .` and `docker build --target gpu .`. See docs/operate/deploy.md.

# ---- Build stages. mappy is built from source, which needs a C compiler and the headers of zlib and Python.
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev python3 python3-dev python3-venv zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# PIP_CONSTRAINT applies the lock to build dependencies, too; `-c` alone would not.
ENV PIP_CONSTRAINT=/build/requirements.lock PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_COMPILE=1 \
    PATH=/opt/porestream/bin:$PATH
COPY pyproject.toml requirements.lock ./
# Install only the dependencies here, so that a code change does not reinstall torch. pip is removed at the end.
RUN python3 -m venv /opt/porestream \
    && pip install -c requirements.lock setuptools \
    && python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
open("server.txt", "w").write("\n".join(project["dependencies"])); \
[open(name + ".txt", "w").write("\n".join(of)) for name, of in project["optional-dependencies"].items() if name.startswith("gpu")]'

FROM build AS wheel
COPY README.md LICENSE NOTICE ./
COPY server server
COPY kernels kernels
COPY models models
COPY client client
COPY cli cli
COPY proto proto
COPY src src
RUN pip wheel --no-deps --no-build-isolation -w /wheels .

FROM build AS build-cpu
# PyPI's torch for Linux includes CUDA; this one does not.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "$TORCH_INDEX" "torch==$(sed -n 's/^torch==//p' requirements.lock)+cpu" \
    && pip install -c requirements.lock -r server.txt
COPY --from=wheel /wheels /wheels
# Compile now, because the root file system may be read-only at run time. unchecked-hash, because these files never
# change, so their times need not match. torch/testing has a file with the syntax of a later Python.
RUN pip install --no-deps /wheels/*.whl \
    && pip check \
    && pip uninstall -y pip \
    && python -m compileall -q -j 0 -x torch/testing --invalidation-mode unchecked-hash /opt/porestream/lib

FROM build AS build-gpu
# CUDA's major version. PyPI's torch includes CUDA 13; for CUDA 12, torch has its own index. GPU_INDEX overrides it.
ARG CUDA=13
ARG GPU_INDEX=
RUN if [ "$CUDA" = 12 ]; then GPU_INDEX="${GPU_INDEX:-https://download.pytorch.org/whl/cu126}"; fi \
    && pip install --no-deps --index-url "${GPU_INDEX:-https://pypi.org/simple}" \
       "torch==$(sed -n 's/^torch==//p' requirements.lock)" \
    && pip install -c requirements.lock -r server.txt -r "gpu$CUDA.txt" \
    && python -c 'import sys, torch; cuda = torch.version.cuda or "none"; \
sys.exit(None if cuda.split(".")[0] == sys.argv[1] else f"torch is built for CUDA {cuda}, not {sys.argv[1]}")' "$CUDA"
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl \
    && pip check \
    && pip uninstall -y pip \
    && python -m compileall -q -j 0 -x torch/testing --invalidation-mode unchecked-hash /opt/porestream/lib

# ---- Runtime stages.
FROM debian:bookworm-slim AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /cache --no-create-home porestream \
    && install -d -o porestream -g porestream /cache \
    && install -d /models /references
# HOME makes libraries that keep files (CuPy, the driver) keep them in the cache. numba's code is not compiled at build
# time, because it only fits the CPU that compiled it. Keeping /cache saves the seconds of compiling it at each start.
ENV PATH=/opt/porestream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    PORESTREAM_CACHE_DIR=/cache \
    PORESTREAM_MODELS=/models \
    PORESTREAM_LISTEN=0.0.0.0:50051 \
    PORESTREAM_HEALTH_LISTEN=0.0.0.0:50052 \
    PORESTREAM_METRICS_HOST=0.0.0.0 \
    PORESTREAM_METRICS_PORT=9464 \
    PORESTREAM_LOG_FORMAT=json
VOLUME ["/models", "/references", "/cache"]
EXPOSE 50051 50052 9464
STOPSIGNAL SIGTERM
WORKDIR /
ENTRYPOINT ["porestream"]
CMD ["serve"]
# Loading models and references may take minutes.
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 CMD ["porestream", "health"]

FROM runtime AS gpu
# NVIDIA's container toolkit reads these and provides the driver.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/porestream /opt/porestream
ARG VERSION=
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="porestream" \
      org.opencontainers.image.description="Nanopore basecalling and alignment over gRPC, on an NVIDIA GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
USER 10001:10001

# The last stage, so `docker build` without --target builds this one.
FROM runtime AS cpu
COPY --from=build-cpu /opt/porestream /opt/porestream
ARG VERSION=
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="porestream" \
      org.opencontainers.image.description="Nanopore basecalling and alignment over gRPC, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
USER 10001:10001
