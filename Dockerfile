# One image for servers, workers and commands.
#   docker build -t metricgold .                                   the pipeline with a torch for CPUs
#   docker build -t metricgold:cuda --build-arg TORCH=cu130 .      with a torch for NVIDIA's CUDA
#   docker build -t metricgold:light --build-arg EXTRAS= .         the core alone: predict on files
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=cpu
ARG EXTRAS=pipeline,serve,postgres,dask
RUN python -m venv /opt/metricgold
ENV PATH=/opt/metricgold/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements.lock pyproject.toml ./
# torch first, from its own index: a later change of the code installs it not again.
RUN pip install --index-url "https://download.pytorch.org/whl/${TORCH}" "$(grep '^torch==' requirements.lock)"
COPY . .
RUN pip install --constraint requirements.lock ".${EXTRAS:+[${EXTRAS}]}"

FROM python:${PYTHON}-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 metricgold && install --directory --owner metricgold /project
COPY --from=build /opt/metricgold /opt/metricgold
ENV PATH=/opt/metricgold/bin:$PATH PYTHONUNBUFFERED=1 DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true
USER metricgold
WORKDIR /project
# Of an image that only works; compose.yaml has one of each server.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["metricgold", "--version"]
ENTRYPOINT ["metricgold"]
CMD ["--help"]
