//! Carries a plan out: server-side apply under one field manager, then the status, then events for users.

use api::{HTTPScaledObject, InterceptorRoute, ScaledObject, names::FIELD_MANAGER};
use interceptor_core::route::RouteKind;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, PodSpec},
        discovery::v1::EndpointSlice,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};

use crate::{
    notice::Notice,
    object::{ORIGINAL, Object, Scaled, ShadowSlice, Subject, Workload},
    observe::{Observed, Probed},
    plan::{self, Action, Plan, StatusWrite},
    world::Item,
};

/// Writes to the API server. Clones share the connection, and what is known of events.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    recorder: Recorder,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The objects as they are now.
    pub items: Vec<Item>,
    /// Why it has to be tried again.
    pub failure: Option<String>,
}

// === impl Writer ===

impl Writer {
    /// A writer that signs its events with `instance`.
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Carries `plan` out. What fails shows in the status.
    ///
    /// Cancel safe between writes: each leaves a state that the next plan starts from.
    pub async fn carry_out(&self, observed: &Observed, plan: Plan, now: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        let subject = &observed.object.subject;
        for action in &plan.actions {
            match self.act(subject, action).await {
                Ok(item) => outcome.items.extend(item),
                Err(error) if is_ending(&error) => return outcome,
                Err(error) => {
                    outcome.failure = Some(describe(&error));
                    break;
                }
            }
        }
        let status = match &outcome.failure {
            Some(why) if !observed.object.meta.deleting => plan::failed(observed, &plan, why, now),
            _ => plan.status,
        };
        if let Some(status) = status {
            match self.write_status(observed, &status).await {
                Ok(item) => outcome.items.extend(item),
                // It went meanwhile, or is another by now: the watch tells.
                Err(kube::Error::Api(status)) if matches!(status.code, 404) => {}
                Err(error) => outcome.failure = Some(outcome.failure.unwrap_or_else(|| describe(&error))),
            }
        }
        outcome
    }

    /// What a workload's pods are probed with.
    pub async fn read_probe(&self, workload: &Workload) -> Probed {
        let (group, version) = workload.api_version.rsplit_once('/').unwrap_or(("", &workload.api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &workload.kind));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), workload.key.namespace(), &resource);
        match api.get_opt(workload.key.name()).await {
            Ok(object) => {
                let template = object.and_then(|object| object.data.pointer("/spec/template/spec").cloned());
                Probed::of_pod(template.and_then(|spec| serde_json::from_value::<PodSpec>(spec).ok()).as_ref())
            }
            Err(error) => {
                let error = describe(&error);
                tracing::warn!(workload = %workload.key, kind = workload.kind, error, "cannot read a pod template");
                Probed::Unreadable
            }
        }
    }

    async fn act(&self, subject: &Subject, action: &Action) -> Result<Option<Item>, kube::Error> {
        let name = subject.key.name();
        let scaled = self.api::<ScaledObject>(subject.key.namespace());
        let merge = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        match action {
            Action::Unfinalize { version, rest } => {
                let patch = json!({"metadata": {"resourceVersion": version, "finalizers": rest}});
                let object = self.routes(subject).patch(name, &merge, &Patch::Merge(&patch)).await;
                Ok(gone_is_none(object)?.and_then(|object| route(subject.kind, &object)))
            }
            Action::Apply { body, over, inherit } => {
                if let Some(at) = inherit {
                    scaled.patch(name, &merge, &Patch::<()>::Json(inherit_from(*at))).await?;
                }
                let mut body = body.clone();
                let mut params = PatchParams::apply(FIELD_MANAGER);
                if let Some(uid) = over {
                    body["metadata"]["uid"] = uid.clone().into();
                    params.force = true;
                }
                let object = scaled.patch(name, &params, &Patch::Apply(&body)).await?;
                tracing::info!(route = %subject.key, kind = subject.kind_name(), new = over.is_none(), "ScaledObject applied");
                Ok(read_scaled(&object))
            }
            Action::Delete { uid } => {
                let uid = Some(uid.clone());
                let params = DeleteParams::default().preconditions(Preconditions { uid, resource_version: None });
                gone_is_none(scaled.delete(name, &params).await)?;
                tracing::info!(route = %subject.key, kind = subject.kind_name(), "ScaledObject deleted");
                Ok(None)
            }
            Action::Publish { name, body } => {
                let slices = self.api::<EndpointSlice>(subject.key.namespace());
                let params = PatchParams::apply(FIELD_MANAGER).force();
                let object = slices.patch(name, &params, &Patch::Apply(body)).await?;
                tracing::info!(route = %subject.key, slice = name, "shadow slice published");
                Ok(ShadowSlice::read(&object).map(|slice| Item::Shadow(Box::new(slice))))
            }
            Action::Withdraw { name, uid } => {
                let slices = self.api::<EndpointSlice>(subject.key.namespace());
                let uid = Some(uid.clone());
                let params = DeleteParams::default().preconditions(Preconditions { uid, resource_version: None });
                gone_is_none(slices.delete(name, &params).await)?;
                tracing::info!(route = %subject.key, slice = name, "shadow slice withdrawn");
                Ok(None)
            }
            Action::Release { version, rest } => {
                let patch = json!({"metadata": {"resourceVersion": version, "ownerReferences": rest}});
                let object = gone_is_none(scaled.patch(name, &merge, &Patch::Merge(&patch)).await)?;
                tracing::info!(route = %subject.key, kind = subject.kind_name(), "ScaledObject let go");
                Ok(object.as_ref().and_then(read_scaled))
            }
        }
    }

    async fn write_status(&self, observed: &Observed, write: &StatusWrite) -> Result<Option<Item>, kube::Error> {
        let Object { subject, meta, .. } = &observed.object;
        let name = subject.key.name();
        let api = self.routes(subject);
        if write.reset {
            let patch = json!({"metadata": {"uid": meta.uid}, "status": {"conditions": Value::Null}});
            api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        let body = json!({
            "apiVersion": subject.api_version(),
            "kind": subject.kind_name(),
            "metadata": {"name": name, "namespace": subject.key.namespace(), "uid": meta.uid},
            "status": write.status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let object = api.patch_status(name, &params, &Patch::Apply(&body)).await?;
        for notice in &write.notices {
            self.tell(subject, &meta.uid, notice).await;
        }
        Ok(route(subject.kind, &object))
    }

    /// An event that cannot be told is not worth another try: the condition says the same.
    async fn tell(&self, subject: &Subject, uid: &str, notice: &Notice) {
        let reference = ObjectReference {
            api_version: Some(subject.api_version().to_owned()),
            kind: Some(subject.kind_name().to_owned()),
            name: Some(subject.key.name().to_owned()),
            namespace: Some(subject.key.namespace().to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.to_owned(),
            note: Some(notice.note.chars().take(1000).collect()),
            action: notice.action.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await
            && !is_ending(&error)
        {
            let error = describe(&error);
            tracing::warn!(route = %subject.key, event = notice.reason, error, "cannot write an event");
        }
    }

    fn routes(&self, subject: &Subject) -> Api<DynamicObject> {
        match subject.kind {
            RouteKind::InterceptorRoute => self.api::<InterceptorRoute>(subject.key.namespace()),
            RouteKind::HttpScaledObject => self.api::<HTTPScaledObject>(subject.key.namespace()),
        }
    }

    fn api<K: kube::Resource<DynamicType = ()>>(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<K>(&()))
    }
}

/// Puts our name in the place of the original's, and makes what it wrote what we applied.
fn inherit_from(at: usize) -> json_patch::Patch {
    let entry = format!("/metadata/managedFields/{at}");
    let patch = json!([
        {"op": "test", "path": format!("{entry}/manager"), "value": ORIGINAL},
        {"op": "replace", "path": format!("{entry}/manager"), "value": FIELD_MANAGER},
        {"op": "replace", "path": format!("{entry}/operation"), "value": "Apply"},
    ]);
    serde_json::from_value(patch).expect("the operations above are those of a patch")
}

fn route(kind: RouteKind, object: &DynamicObject) -> Option<Item> {
    Object::read(kind, object).map(|object| Item::Route(Box::new(object)))
}

fn read_scaled(object: &DynamicObject) -> Option<Item> {
    Scaled::read(object).map(|scaled| Item::Scaled(Box::new(scaled)))
}

fn gone_is_none<T>(result: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the namespace goes, or has gone, with all that is in it.
fn is_ending(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let gone = status.code == 404 && status.details.as_ref().is_some_and(|details| details.kind == "namespaces");
    gone || causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// What the API server says, in its own words; of other errors, all causes.
pub(crate) fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
