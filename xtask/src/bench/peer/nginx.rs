//! nginx as origin and as proxy: one worker, keep-alive both ways, no access log.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Peer, configuration, pinned};
use crate::bench::{case::Case, manifests};

/// What both roles share. Idle connections and requests on one are unlimited in effect: nobody reconnects in a run.
const HEAD: &str = "\
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 8192; }
";

const HTTP: &str = "
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  tcp_nodelay on;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
";

/// nginx in the foreground with this configuration.
pub(super) fn command(program: &Path, folder: &Path, config: &Path, proxy: bool) -> Command {
    let mut command = pinned(program, proxy);
    command.arg("-p").arg(folder).arg("-c").arg(config);
    // Before the configuration is read it would write to the machine's own log.
    command.args(["-e", "stderr"]);
    command
}

/// The origin: a small and a 64 KiB response over HTTP/1.1 and cleartext HTTP/2.
pub(super) fn origin(folder: &Path, http1: SocketAddr, http2: SocketAddr) -> Result<PathBuf> {
    let files = folder.join("files");
    fs::create_dir_all(&files).with_context(|| format!("cannot make {}", files.display()))?;
    fs::write(files.join("64k"), vec![b'x'; 64 * 1024]).context("cannot write the 64 KiB response")?;
    let text = format!(
        "{HEAD}{user}http {{{HTTP}  sendfile on; tcp_nopush on; open_file_cache max=16; open_file_cache_valid 1h;
  default_type text/plain;
  http2_max_concurrent_streams 1024;
  server {{
    listen {http1} backlog=4096;
    listen {http2} http2 backlog=4096;
    location = /small {{ return 200 'hello from the origin\\n'; }}
    location = /64k {{ root {files}; }}
  }}
}}
",
        user = user(),
        files = files.display()
    );
    configuration(folder, "nginx.conf", &text)
}

/// The proxy: every route's host, looked up in a map, goes to the one origin.
pub(super) fn proxy(
    folder: &Path,
    case: &Case,
    http1: SocketAddr,
    http2: SocketAddr,
    origin: &Peer,
) -> Result<PathBuf> {
    let mut routes = String::new();
    for number in 0..case.routes {
        // Writing to a String cannot fail.
        let _ = writeln!(routes, "    {} origin;", manifests::host(number));
    }
    let text = format!(
        "{HEAD}{user}http {{{HTTP}  map_hash_max_size 65536; map_hash_bucket_size 128;
  http2_max_concurrent_streams 1024;
  proxy_buffer_size 16k; proxy_buffers 16 16k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
  upstream origin {{
    server {origin};
    keepalive 512;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
  }}
  map $host $route {{
{routes}  }}
  server {{
    listen {http1} backlog=4096;
    listen {http2} http2 backlog=4096;
    if ($route = '') {{ return 404; }}
    location / {{
      proxy_pass http://$route;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
    }}
  }}
}}
",
        user = user(),
        origin = origin.http1,
    );
    configuration(folder, "nginx.conf", &text)
}

/// As root its workers would become www-data, who cannot enter our folder.
fn user() -> &'static str {
    if crate::process::is_root() { "user root;\n" } else { "" }
}
