# One image for servers, workers and commands.
#   docker build -t metricgold .                                   the pipeline, with the torch that brings CUDA along
#   docker build -t metricgold --build-arg TORCH_INDEX=ADDRESS .   with a torch from elsewhere: one for CPUs is small
#   docker build -t metricgold:light --build-arg EXTRAS= .         the core alone: predict on files
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH_INDEX=
ARG EXTRAS=pipeline,serve,postgres,dask
RUN python -m venv /opt/metricgold
ENV PATH=/opt/metricgold/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements.lock pyproject.toml ./
# torch first: a later change of the code does not install it again.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' requirements.lock)"
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
