# The server, without root. For a CPU build of torch give its index, as torch's own installation page names it:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... -t trimtab .
#   docker run -p 8000:8000 -v "$PWD/serve:/data:ro" -e TRIMTAB_API_KEY=... trimtab --config /data/serve.yaml
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL PYTHONUNBUFFERED=1
WORKDIR /build
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[serve,gguf]" && rm -rf /build
RUN useradd --create-home --uid 10001 trimtab
USER trimtab
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["trimtab", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--help"]
