# One image: the agent with its Python, the static plugin, the reference plugins, eBPF objects, nft and BIRD. ip and
# birdc are for people who look into the container.
# Debian 12, as the nft of later ones writes tables on which an older nft of the host crashes (1.1.3 and 1.0.6).
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      gcc libc6-dev make python3-venv clang libbpf-dev containernetworking-plugins >/dev/null
ARG PIP_CERT
WORKDIR /src
COPY requirements.lock requirements-build.lock pyproject.toml README.md LICENSE ./
# Pip stays in a venv of its own: the agent's has nothing but the agent and what it imports.
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/testcni/venv \
 && /pip/bin/pip install -q --require-hashes -r requirements-build.lock \
 && /pip/bin/pip --python /opt/testcni/venv/bin/python install -q --no-compile --require-hashes -r requirements.lock
# The licences of what is linked into the reference plugins: Go links statically.
COPY image image
RUN apt-get update -qq && python3 image/third_party.py linked containernetworking-plugins /licences/linked
COPY LICENSES /licences/LICENSES
COPY LICENSE /licences/
COPY cni-bin cni-bin
COPY ebpf ebpf
COPY agent agent
RUN make -s -C cni-bin OUT=/opt/testcni/bin && make -s -C ebpf OUT=/opt/testcni/ebpf \
 && cp -L /usr/lib/cni/portmap /usr/lib/cni/bandwidth /usr/lib/cni/loopback /opt/testcni/bin/ \
 && /pip/bin/pip wheel -q --no-deps --no-build-isolation -w /wheel . \
 && /pip/bin/pip --python /opt/testcni/venv/bin/python install -q --no-compile --no-deps /wheel/*.whl \
# Bytecode that does not depend on file times, as the root is read-only and the image reproducible.
 && /opt/testcni/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/testcni/venv/lib

FROM ${BASE}
# ca-certificates is left out: the API server's CA comes with the service account.
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      python3-minimal libpython3-stdlib nftables bird2 libbpf1 iproute2 >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* /var/lib/dpkg/*-old \
      /usr/share/man /usr/share/locale /usr/share/info \
 && find /usr/share/doc ! -xtype d ! -name copyright -delete
COPY --from=build /opt/testcni /opt/testcni
COPY --from=build /licences /usr/share/doc/testcni
COPY bird/*.conf /opt/testcni/bird/
COPY bird/birdc /opt/testcni/venv/bin/birdc
ENV PATH=/opt/testcni/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
COPY image/third_party.py /tmp/
RUN python /tmp/third_party.py > /usr/share/doc/testcni/THIRD_PARTY.md && rm /tmp/third_party.py
LABEL org.opencontainers.image.title="testcni" \
      org.opencontainers.image.description="Pod networking for Kubernetes: agent, CNI plugin and what they need" \
      org.opencontainers.image.licenses="Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
ENTRYPOINT ["testcni-agent"]
