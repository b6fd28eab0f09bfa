# The server, without root, on a file system that may be read-only: docs/serving/containers.md.
#   docker build -t trimtab .                              # with CUDA, as torch's default build for Linux has it
#   docker build --build-arg TORCH_INDEX=... -t trimtab .  # for a processor; the index that torch's installation page names
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /venv
COPY constraints.txt ./
# torch alone comes from that index; what it needs comes from the usual one, below.
RUN if [ -n "$TORCH_INDEX" ]; \
    then PIP_INDEX_URL="$TORCH_INDEX" /venv/bin/pip install --no-deps -c constraints.txt torch; \
    else /venv/bin/pip install -c constraints.txt torch; fi
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src src
RUN /venv/bin/pip install -c constraints.txt ".[serve,gguf,structured]"

FROM python:3.11-slim
COPY --from=build /venv /venv
# What is written: models from the hub and converted ones below /models, all else below /tmp.
RUN useradd --no-create-home --home-dir /tmp --uid 10001 trimtab && install -d -o trimtab -g trimtab /models
ENV PATH=/venv/bin:$PATH HOME=/tmp HF_HOME=/models/huggingface TRIMTAB_CACHE=/models/trimtab \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /config
VOLUME /models
EXPOSE 8000
# Loading takes minutes; until then nobody listens.
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=8)"]
ENTRYPOINT ["trimtab", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--config", "/config/serve.yaml"]
