//! Manifests that benches give to the interceptor: one Service, its EndpointSlice, and any number of routes to it.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path};

use anyhow::{Context as _, Result};

/// Routes in one file: small enough that a file stays readable, large enough that 10,000 routes are few files.
const PER_FILE: usize = 100;

/// Host name of route `number`.
pub(crate) fn host(number: usize) -> String {
    format!("route-{number}.bench.example")
}

/// Writes the Service of the origin and `routes` routes to it into the folder.
pub(crate) fn write(folder: &Path, origin: SocketAddr, h2_origin: bool, routes: usize) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    put(folder, "origin.yaml", &service(origin, h2_origin))?;
    for first in (0..routes).step_by(PER_FILE) {
        let text: String = (first..routes.min(first + PER_FILE)).map(route).collect();
        put(folder, &format!("routes-{first:05}.yaml"), &text)?;
    }
    Ok(())
}

/// Puts a file there as an editor that means well does: whole, or not at all.
pub(crate) fn put(folder: &Path, name: &str, text: &str) -> Result<()> {
    let (hidden, file) = (folder.join(format!(".{name}.new")), folder.join(name));
    fs::write(&hidden, text)
        .and_then(|()| fs::rename(&hidden, &file))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The manifest of one route, its own document.
pub(crate) fn route(number: usize) -> String {
    format!(
        "---\napiVersion: http.keda.sh/v1beta1\nkind: InterceptorRoute\nmetadata: {{ name: route-{number}, namespace: bench }}\n\
         spec:\n  target: {{ service: origin, port: 80 }}\n  rules:\n  - hosts: [{}]\n  scalingMetric:\n    concurrency: {{ targetValue: 100 }}\n",
        host(number)
    )
}

fn service(origin: SocketAddr, h2_origin: bool) -> String {
    let (ip, port) = (origin.ip(), origin.port());
    let protocol = if h2_origin { ", appProtocol: kubernetes.io/h2c" } else { "" };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: origin, namespace: bench }}\nspec:\n  ports:\n  \
         - {{ name: http, port: 80, targetPort: {port}{protocol} }}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: origin-1\n  namespace: bench\n  \
         labels: {{ kubernetes.io/service-name: origin }}\naddressType: IPv4\nports:\n\
         - {{ name: http, port: {port}, protocol: TCP{protocol} }}\nendpoints:\n\
         - {{ addresses: [{ip}], conditions: {{ ready: true }} }}\n"
    );
    text
}
