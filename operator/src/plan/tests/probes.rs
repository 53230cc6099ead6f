//! What the status says of the pods' probes.

use api::{ReadinessProbe, UnnamedProbe};

use super::*;

fn unnamed() -> UnnamedProbe {
    UnnamedProbe { path: "/live".to_owned(), port: 8080, user_agent: Some("mine".to_owned()), host: None }
}

/// The status after pods were read so.
fn written(server: &mut Server, probe: Probed) -> Option<Value> {
    let status = plan(&Observed { probe, ..server.observe() }, &settings(), NOW).status?.status;
    server.routes[0]["status"] = status.clone();
    Some(status)
}

#[test]
fn probes_that_do_not_name_themselves_are_told_of_and_kept_while_pods_cannot_be_read() {
    let mut server = Server::with(route(&json!({})), Vec::new());
    let read = || Probed::Read(Some(ReadinessProbe::default()), vec![unnamed()]);
    let status = written(&mut server, read()).unwrap();
    assert_eq!(status["unnamedProbes"], json!([{"port": 8080, "path": "/live", "userAgent": "mine"}]));
    assert_eq!(written(&mut server, read()), None);
    assert_eq!(written(&mut server, Probed::Unreadable), None);
    let status = written(&mut server, Probed::Read(None, Vec::new())).unwrap();
    assert!(status.get("unnamedProbes").is_none() && status.get("readinessProbe").is_none(), "{status}");
}

#[test]
fn an_http_scaled_object_has_no_use_for_them() {
    let mut server = Server::with(http(&json!({})), Vec::new());
    let status = written(&mut server, Probed::Read(Some(ReadinessProbe::default()), vec![unnamed()])).unwrap();
    assert!(status.get("unnamedProbes").is_none() && status["readinessProbe"].is_object(), "{status}");
}
