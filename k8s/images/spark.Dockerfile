# Spark's driver (a Spark Connect server) and executors.
# From the repository's root: docker build -f k8s/images/spark.Dockerfile -t topicscale-spark:0.1.0 .
# With every package it also runs the whole job (overlays/spark): add --build-arg "PACKAGES=.*" -t topicscale-driver:0.1.0
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE}
# a regular expression of names in requirements.txt; executors run no Python, and the server little of it
ARG PACKAGES=pyspark|py4j|delta-spark|pyyaml
# haproxy is the TLS in front of Spark Connect, which has none of its own
RUN apt-get update && apt-get install -y --no-install-recommends openjdk-17-jre-headless haproxy && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin topicscale
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
ENV VENV=/opt/topicscale APP=/opt/topicscale/app SPARK_HOME=/opt/topicscale/lib/python3.11/site-packages/pyspark
WORKDIR /opt/topicscale/app
COPY requirements.txt ./
RUN python3.11 -m venv "$VENV"
RUN awk '/^[^ #]/ { mine = /^uv==/ } mine' requirements.txt > uv.txt \
    && "$VENV/bin/pip" install --no-cache-dir --require-hashes -r uv.txt
RUN awk -v names="^($PACKAGES)==" '/^[^ #]/ { mine = $0 ~ names } mine' requirements.txt > chosen.txt \
    && "$VENV/bin/uv" pip install --python "$VENV/bin/python" --require-hashes --no-deps -r chosen.txt
COPY conf ./conf
COPY topicscale ./topicscale
COPY spark ./spark
COPY ray_actors ./ray_actors
COPY jobs ./jobs
COPY k8s/images/entrypoint.sh k8s/images/start-connect-server.sh k8s/images/stop-connect-server.sh ./
# the jars of Delta, of S3 and of what else Spark lacks, resolved once, here
RUN "$VENV/bin/python" -c 'from spark.jars import fetch_jars; print(*fetch_jars(), *fetch_jars(kind="s3"), sep="\n")'
RUN install -m 755 start-connect-server.sh stop-connect-server.sh "$SPARK_HOME/sbin/" && install -m 755 entrypoint.sh "$VENV/bin/"
ENV PATH=/opt/topicscale/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin PYTHONPATH=/opt/topicscale/app PYSPARK_PYTHON=/opt/topicscale/bin/python HOME=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["/opt/topicscale/bin/entrypoint.sh"]
