# The node with the demo model. Bases are variables, so the same file builds where only local images are to be had
# (`make cluster-images`).
# PROFILE is cargo's: `quick`, of Cargo.toml, is built in half of the time, for drills.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUN_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
ARG PROFILE=release
RUN command -v cmake >/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends cmake g++ make)
WORKDIR /src
# The dependencies are a layer of their own: it is made again only when the lock file changes.
COPY Cargo.toml Cargo.lock ./
COPY third_party third_party
RUN mkdir -p src benches && echo 'fn main() {}' > src/main.rs && echo 'fn main() {}' > build.rs && touch src/lib.rs \
    && sed -i '/^\[\[\(bench\|test\)\]\]/,/^$/d' Cargo.toml \
    && cargo build --profile ${PROFILE} --locked --bin inferno-node
COPY . .
RUN touch build.rs src/main.rs src/lib.rs \
    && cargo build --profile ${PROFILE} --locked --bin inferno-node \
    && strip -o /inferno-node target/${PROFILE}/inferno-node

FROM ${RUN_IMAGE}
RUN export DEBIAN_FRONTEND=noninteractive && apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /nonexistent inferno
COPY --from=build /inferno-node /usr/local/bin/inferno-node
COPY models/demo/*.json models/demo/model.safetensors models/demo/LICENSE* /opt/inferno/models/demo/
USER inferno
EXPOSE 8000
# The model is baked in; anything else comes through INFERNO_<SECTION>_<KEY>.
ENV INFERNO_MODEL_PATH=/opt/inferno/models/demo INFERNO_MODEL_NAME=demo INFERNO_BUS_MODE=off
HEALTHCHECK --interval=2s --timeout=3s --start-period=60s --retries=5 \
    CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:8000/health/ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/inferno-node"]
CMD ["serve"]
