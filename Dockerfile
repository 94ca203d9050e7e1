# syntax=docker/dockerfile:1
FROM python:3.13-slim

LABEL org.opencontainers.image.title="stompd" \
      org.opencontainers.image.description="A durable STOMP message broker in one Python process" \
      org.opencontainers.image.licenses="MIT"

COPY . /src
RUN pip install --no-cache-dir --no-compile /src \
    && rm -rf /src \
    && useradd --system --uid 61613 --no-create-home --shell /usr/sbin/nologin stompd \
    && install -d -o stompd -g stompd -m 0700 /var/lib/stompd

# Inside a container loopback reaches nobody, so it listens on all addresses of the container. There are no users and no
# TLS yet: the two STOMPD_ACCESS lines say what stompd would otherwise refuse, that everyone who reaches these ports may
# read and write every queue, unencrypted. Keep the container on a network of your own, and publish the ports to this
# machine only:
#     docker run -p 127.0.0.1:61613:61613 -v stompd-data:/var/lib/stompd stompd
ENV PYTHONUNBUFFERED=1 \
    STOMPD_DATA_DIR=/var/lib/stompd \
    STOMPD_STOMP__LISTEN=0.0.0.0:61613 \
    STOMPD_HTTP__LISTEN=0.0.0.0:15674 \
    STOMPD_ACCESS__ANONYMOUS=true \
    STOMPD_ACCESS__I_ACCEPT_PLAINTEXT=true

USER stompd
VOLUME ["/var/lib/stompd"]
EXPOSE 61613 15674
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:15674/readyz', timeout=2)"]

ENTRYPOINT ["stompd"]
CMD ["serve"]
