# The image holds the installed wheel and its pinned dependencies, not the source tree: what runs is
# what tests/test_packaging.py looked into. It has no database of its own: set DATABASE_URL.
#
#   docker build -t capegate .
#   docker run -p 8000:8000 -e DATABASE_URL=postgresql://… -e GATEWAY_TOKEN_HMAC_SECRET=… capegate

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY gateway gateway
COPY handlers handlers
COPY clients/js/src clients/js/src
COPY store store
COPY metrics metrics
RUN pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels '.[redis]'

FROM python:${PYTHON}-slim
# An environment of its own: `gateway`, `handlers`, `store` and `metrics` are names that others may use.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m venv /opt/capegate && \
    /opt/capegate/bin/pip install --no-cache-dir --no-index --find-links /wheels 'capegate[redis]' && \
    useradd --system --create-home --home-dir /var/lib/capegate capegate
ENV PATH=/opt/capegate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_DATA_DIR=/var/lib/capegate
USER capegate
WORKDIR /var/lib/capegate
EXPOSE 8000
# PORT as platforms set it, otherwise the gateway's default.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\") or os.environ.get(\"GATEWAY_PORT\") or 8000}/api/health', timeout=2)"]
# The process itself is PID 1 and gets SIGTERM: sessions are drained, then it ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["capegate"]
CMD ["serve"]
