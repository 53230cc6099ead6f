//! The text of a manifest file, taken apart into documents and those into objects. No I/O.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use api::convert::DEFAULT_NAMESPACE;
use interceptor_core::ObjectKey;
use serde::{Deserialize, de::DeserializeOwned};

use super::{Kind, Object};

/// How deep brackets may be nested in YAML: twice what can be read, since those in quotes are counted too. The parser takes
/// time by the square of it.
const MAX_NESTING: usize = 256;

/// One object of a file, or why there is none.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Which document of the file, from 1.
    pub(super) document: usize,
    /// A hash of its text, to tell an edit from a copy.
    pub(super) hash: u64,
    /// The object, or what is known of it.
    pub(super) outcome: Result<Box<Object>, Failure>,
}

/// A document that can't be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The object it is about, as far as the text tells.
    pub(super) id: Option<(Kind, ObjectKey)>,
    /// Why.
    pub(super) message: String,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// What every object has.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: String,
    kind: String,
    metadata: HeadMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HeadMeta {
    name: String,
    namespace: Option<String>,
}

/// A list of objects, as `kubectl get -o yaml` writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct List {
    items: Vec<serde_json::Value>,
}

/// A `stringData` that the API server would have moved into `data`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretText {
    string_data: Option<std::collections::BTreeMap<String, String>>,
}

/// All objects of the kinds we read, in the order of the file. Documents of other kinds, and empty ones, leave nothing.
pub(super) fn parse(text: &str, format: Format) -> Vec<Parsed> {
    let mut out = Vec::new();
    for (index, text) in documents(text, format).into_iter().enumerate() {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        document(index + 1, &Text { text, format }, hasher.finish(), &mut out);
    }
    out
}

fn document(number: usize, text: &Text<'_>, hash: u64, out: &mut Vec<Parsed>) {
    let mut push = |hash, outcome: Result<Object, Failure>| {
        out.push(Parsed { document: number, hash, outcome: outcome.map(Box::new) });
    };
    if text.is_blank() {
        return;
    }
    if text.is_too_deep() {
        let message = format!("brackets are nested more than {MAX_NESTING} deep");
        return push(hash, Err(Failure { id: guess(text.text), message }));
    }
    let head: Head = match text.read() {
        Ok(head) => head,
        Err(message) => return push(hash, Err(Failure { id: guess(text.text), message })),
    };
    if !head.kind.ends_with("List") {
        if let Some(outcome) = object(&head, text) {
            push(hash, outcome);
        }
        return;
    }
    let list: List = match text.read() {
        Ok(list) => list,
        Err(message) => return push(hash, Err(Failure { id: None, message })),
    };
    for value in list.items {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let outcome = match serde_json::from_value::<Head>(value.clone()) {
            Ok(head) => object(&head, &value),
            Err(error) => Some(Err(Failure { id: None, message: error.to_string() })),
        };
        if let Some(outcome) = outcome {
            push(hasher.finish(), outcome);
        }
    }
}

/// The object of a document whose head is known; `None` when it is of a kind that is not read.
fn object(head: &Head, body: &impl Body) -> Option<Result<Object, Failure>> {
    let Head { api_version, kind, metadata } = head;
    if kind.is_empty() || api_version.is_empty() {
        let what = if kind.is_empty() { "kind" } else { "apiVersion" };
        return Some(Err(Failure {
            id: None,
            message: format!("{what} is empty: expected every document to have one"),
        }));
    }
    let kind = Kind::named(kind)?;
    let group = |version: &str| version.split_once('/').map(|(group, _)| group.to_owned());
    if group(api_version) != group(kind.api_version()) {
        return None;
    }
    let namespace = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    let id = (kind, ObjectKey::new(namespace.unwrap_or(DEFAULT_NAMESPACE), metadata.name.as_str()));
    let outcome = if metadata.name.is_empty() {
        Err("metadata.name is empty: expected a name".to_owned())
    } else if api_version != kind.api_version() {
        Err(format!("apiVersion is {api_version}: expected {}", kind.api_version()))
    } else {
        typed(kind, body).and_then(|mut object| {
            object.metadata_mut().namespace = Some(id.1.namespace().to_owned());
            object.core_event().map(|_| object).map_err(|error| error.to_string())
        })
    };
    let id = (!metadata.name.is_empty()).then_some(id);
    Some(outcome.map_err(|message| Failure { id, message }))
}

pub(super) fn typed(kind: Kind, body: &impl Body) -> Result<Object, String> {
    Ok(match kind {
        Kind::InterceptorRoute => Object::InterceptorRoute(body.read()?),
        Kind::HttpScaledObject => Object::HttpScaledObject(body.read()?),
        Kind::ScaledObject => Object::ScaledObject(body.read()?),
        Kind::Service => Object::Service(body.read()?),
        Kind::EndpointSlice => Object::EndpointSlice(body.read()?),
        Kind::ConfigMap => Object::ConfigMap(body.read()?),
        Kind::Deployment => Object::Deployment(body.read()?),
        Kind::Namespace => Object::Namespace(body.read()?),
        Kind::Secret => {
            // The reader's own words would quote what it stumbled over, which may be a key.
            let unreadable =
                |_quotes: String| "it cannot be read: expected a Secret, with base64 as its data".to_owned();
            let mut secret: Box<k8s_openapi::api::core::v1::Secret> = body.read().map_err(unreadable)?;
            let SecretText { string_data } = body.read().map_err(unreadable)?;
            for (key, text) in string_data.unwrap_or_default() {
                let data = secret.data.get_or_insert_default();
                data.insert(key, k8s_openapi::ByteString(text.into_bytes()));
            }
            secret.string_data = None;
            Object::Secret(secret)
        }
    })
}

/// Something an object can be read from, more than once.
pub(super) trait Body {
    fn read<T: DeserializeOwned>(&self) -> Result<T, String>;
}

/// One document as text.
struct Text<'a> {
    text: &'a str,
    format: Format,
}

impl Text<'_> {
    fn is_too_deep(&self) -> bool {
        let depths = self.text.bytes().scan(0_usize, |depth, byte| {
            *depth = match byte {
                b'[' | b'{' => *depth + 1,
                b']' | b'}' => depth.saturating_sub(1),
                _ => *depth,
            };
            Some(*depth)
        });
        self.format == Format::Yaml && depths.max().is_some_and(|depth| depth > MAX_NESTING)
    }

    fn is_blank(&self) -> bool {
        self.text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
    }
}

impl Body for Text<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        match self.format {
            Format::Yaml => serde_yaml_ng::from_str(self.text).map_err(|error| error.to_string()),
            Format::Json => serde_json::from_str(self.text).map_err(|error| error.to_string()),
        }
    }
}

impl Body for serde_json::Value {
    fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        T::deserialize(self).map_err(|error| error.to_string())
    }
}

/// The texts between lines of `---`. They are cut before they are parsed, so that one that is no YAML harms no other.
fn documents(text: &str, format: Format) -> Vec<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if format == Format::Json {
        return vec![text];
    }
    let (mut out, mut start, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---");
        if at > start && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            out.push(&text[start..at]);
            start = at;
        }
        at += line.len();
    }
    out.push(&text[start..]);
    // Comments before the first line of `---` are no document of their own.
    if out.len() > 1 && (Text { text: out[0], format }).is_blank() {
        out.remove(0);
    }
    out
}

/// Whom a text that is no YAML is about, by its lines.
fn guess(text: &str) -> Option<(Kind, ObjectKey)> {
    let (mut kind, mut name, mut namespace, mut in_metadata) = (None, None, None, false);
    for line in text.lines() {
        if !line.starts_with([' ', '\t']) {
            in_metadata = line.starts_with("metadata:");
        }
        let value = |key: &str| {
            let value = line.trim_start().strip_prefix(key)?.trim().trim_matches(['"', '\'']);
            (!value.is_empty()).then(|| value.to_owned())
        };
        if line.starts_with("kind:") {
            kind = value("kind:");
        } else if in_metadata && name.is_none() && value("name:").is_some() {
            name = value("name:");
        } else if in_metadata && namespace.is_none() {
            namespace = value("namespace:");
        }
    }
    let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    Some((Kind::named(&kind?)?, ObjectKey::new(namespace, name?)))
}
