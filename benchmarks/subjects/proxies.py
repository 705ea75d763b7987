"""Reverse proxies, which only forward bytes: nginx, HAProxy, and Go's ``httputil.ReverseProxy``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from attrs import frozen

from benchmarks.binaries import cache_dir
from benchmarks.processes import free_port
from benchmarks.subjects.base import Address, MissingSubjectError, Start, ask_version
from benchmarks.tool_processes import Target

__all__ = ["GoReverseProxy", "Haproxy", "Nginx"]

BUILD_SECONDS = 180

NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 64m;
    client_body_buffer_size 2m;
    keepalive_requests 1000000;
    upstream provider {{
        server {upstream.host}:{upstream.port};
        keepalive 1024;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        listen 127.0.0.1:{http2_port} http2 backlog=4096;
        location / {{
            proxy_pass {upstream.scheme}://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_ssl_trusted_certificate {upstream.ca_file};
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
        }}
    }}
}}
"""

HAPROXY = """\
global
    nbthread 1
    maxconn 8192
    log stderr local0 err
defaults
    mode http
    option http-keep-alive
    option http-no-delay
    http-reuse always
    timeout connect 5s
    timeout client 120s
    timeout server 120s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    bind 127.0.0.1:{http2_port} proto h2 backlog 4096
    default_backend provider
backend provider
    server provider {upstream.host}:{upstream.port}{tls}
"""


def find_program(name: str) -> str:
    """Return the path of a program, also searched in folders that are often missing from PATH.

    Raises :exc:`MissingSubjectError`.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/usr/local/go/bin")
    if found is None:
        raise MissingSubjectError(f"no `{name}` on PATH")
    return found


@frozen
class Nginx:
    """One worker, buffering off, keep-alive connections to the upstream; HTTP/2 in clear text on a second port."""

    name: str = "nginx"
    start_seconds: float = 10.0
    has_tls: bool = True
    has_http2: bool = True

    def version(self) -> str:
        return ask_version([find_program("nginx"), "-v"]).removeprefix("nginx version: ")

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        file = directory / "nginx.conf"
        http2_port = free_port()
        file.write_text(NGINX.format(directory=directory, port=port, http2_port=http2_port, upstream=upstream))
        program = find_program("nginx")
        return Start(
            command=(program, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(file)),
            target=Target(port, http2_port=http2_port),
        )


@frozen
class Haproxy:
    """One thread, keep-alive connections to the upstream, ``http-no-delay``; HTTP/2 on a second port."""

    name: str = "haproxy"
    start_seconds: float = 10.0
    has_tls: bool = True
    has_http2: bool = True

    def version(self) -> str:
        return ask_version([find_program("haproxy"), "-v"]).partition(" - ")[0]

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        file = directory / "haproxy.cfg"
        tls = f" ssl verify required ca-file {upstream.ca_file}" if upstream.scheme == "https" else ""
        http2_port = free_port()
        file.write_text(HAPROXY.format(port=port, http2_port=http2_port, upstream=upstream, tls=tls))
        command = (find_program("haproxy"), "-db", "-f", str(file))
        return Start(command=command, target=Target(port, http2_port=http2_port))


@frozen
class GoReverseProxy:
    """``go/main.go``, built with the installed Go; GOMAXPROCS=1, every write flushed at once."""

    name: str = "go"
    start_seconds: float = 10.0
    has_tls: bool = True
    has_http2: bool = False

    def version(self) -> str:
        return ask_version([find_program("go"), "version"]).removeprefix("go version ")

    def prepare(self, directory: Path, port: int, upstream: Address) -> Start:
        trust = ("-ca", str(upstream.ca_file)) if upstream.scheme == "https" else ()
        command = (str(self._build()), "-listen", f"127.0.0.1:{port}", "-upstream", upstream.url, *trust)
        return Start(command=command, environ={"GOMAXPROCS": "1"}, target=Target(port))

    def _build(self) -> Path:
        source = Path(__file__).parent / "go"
        digest = hashlib.sha256((source / "main.go").read_bytes() + self.version().encode()).hexdigest()[:16]
        binary = cache_dir() / f"go-{digest}" / "reverse-proxy"
        if binary.exists():
            return binary
        binary.parent.mkdir(parents=True, exist_ok=True)
        environ = {
            **os.environ,
            "GOCACHE": str(cache_dir() / "go-build"),
            "GOFLAGS": "-mod=mod",
            "GOTOOLCHAIN": "local",
        }
        command = [find_program("go"), "build", "-o", str(binary), "."]
        try:
            subprocess.run(command, cwd=source, env=environ, check=True, capture_output=True, timeout=BUILD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise MissingSubjectError(f"`go build` took more than {BUILD_SECONDS} s") from error
        except subprocess.CalledProcessError as error:
            raise MissingSubjectError(f"`go build` failed: {error.stderr.decode(errors='replace').strip()}") from error
        return binary
