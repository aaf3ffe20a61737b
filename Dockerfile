# OmniAvatar on NVIDIA GPUs: docs/container.md.
# CUDA's libraries come with PyTorch's wheels; the base image has what the NVIDIA runtime reads of a container.
ARG BASE=nvidia/cuda:13.0.3-base-ubuntu24.04
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# gcc, Python.h: torch.compile builds with them when a command with --compile runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What is installed belongs to root; the user who runs it owns the models and the working folder alone.
ARG UID=1000
RUN if id ubuntu; then userdel ubuntu; rm -r /home/ubuntu; fi \
    && useradd --create-home --uid "${UID}" omniavatar \
    && install --directory --owner omniavatar /models /work
ENV PATH=/opt/omniavatar/bin:$PATH

# The packages before the sources: a change of the sources installs nothing else again.
COPY pyproject.toml /src/
# hadolint ignore=DL3013
RUN python3 -m venv /opt/omniavatar \
    && pip install --no-cache-dir uv \
    && uv pip install --no-cache --compile-bytecode --python /opt/omniavatar/bin/python \
        --requirements /src/pyproject.toml --extra train --extra ui "diffsynth>=2.1,<2.2"

COPY README.md LICENSE /src/
COPY diffsynth_omniavatar /src/diffsynth_omniavatar
RUN uv pip install --no-cache --compile-bytecode --no-deps --python /opt/omniavatar/bin/python /src

# USER: torch and triton name their caches after the user, who may be one that the image does not know.
ENV DIFFSYNTH_MODEL_BASE_PATH=/models \
    HF_HOME=/models/huggingface \
    MODELSCOPE_CACHE=/models/modelscope \
    TORCH_HOME=/models/torch \
    USER=omniavatar \
    PYTHONUNBUFFERED=1
VOLUME /models
WORKDIR /work
USER ${UID}
EXPOSE 7860
ENTRYPOINT ["omniavatar"]
CMD ["--help"]
