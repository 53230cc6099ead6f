//! `GET /queue`: the counts of every route, in the format of the KEDA HTTP Add-on, so that its scaler understands us.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use runtime::{admin::reply, snapshot::Reader};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Count {
    concurrency: u64,
    request_count: u64,
}

/// The counts of all routes now.
pub(crate) fn respond(reader: &Reader) -> Response<Full<Bytes>> {
    let snapshot = reader.load();
    let counts: BTreeMap<String, Count> = snapshot
        .routes
        .iter()
        .map(|(key, entry)| {
            let counts = entry.counters.counts();
            (key.to_string(), Count { concurrency: counts.in_flight, request_count: counts.total })
        })
        .collect();
    let mut json = serde_json::to_vec(&counts).expect("names and numbers are valid JSON");
    json.push(b'\n');
    reply::json(json)
}
