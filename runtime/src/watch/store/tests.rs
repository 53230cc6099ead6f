//! What changes when files do, without files.

use std::collections::{BTreeMap, btree_map::Entry};

use k8s_openapi::api::core::v1::ConfigMap;
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::watch::manifest::{Format, parse};

fn config(name: &str, value: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{v: '{value}'}}}}\n")
}

/// A store with its files, and what its events add up to.
struct World {
    store: Store,
    files: BTreeMap<String, String>,
    seen: BTreeMap<String, String>,
    invalid: BTreeSet<Invalid>,
}

impl World {
    fn with(limit: usize) -> Self {
        Self { store: Store::new(limit), files: BTreeMap::new(), seen: BTreeMap::new(), invalid: BTreeSet::new() }
    }

    fn write(&mut self, file: &str, text: String) {
        self.store.replace(Path::new(file), parse(&text, Format::Yaml));
        self.files.insert(file.to_owned(), text);
    }

    fn remove(&mut self, file: &str) {
        self.store.remove(Path::new(file));
        self.files.remove(file);
    }

    fn settle(&mut self) -> usize {
        let files = &self.files;
        let events = self.store.settle(|path| Some(parse(files.get(path.to_str()?)?, Format::Yaml)));
        let count = events.len();
        for event in events {
            match event {
                WatchEvent::Applied(Object::ConfigMap(object)) => {
                    let ConfigMap { data, metadata, .. } = *object;
                    let value = data.and_then(|mut data| data.remove("v")).unwrap_or_default();
                    self.seen.insert(metadata.name.unwrap(), value);
                }
                WatchEvent::Deleted(Kind::ConfigMap, key) => {
                    assert!(self.seen.remove(key.name()).is_some(), "{key} was not there");
                }
                WatchEvent::Invalid(invalid) => assert!(self.invalid.insert(invalid), "told twice"),
                WatchEvent::Repaired(invalid) => assert!(self.invalid.remove(&invalid), "never told"),
                other => panic!("{other:?}"),
            }
        }
        count
    }
}

#[test]
fn a_copy_that_takes_over_changes_nothing() {
    let mut world = World::with(MAX_OBJECTS);
    world.write("a", config("x", "1"));
    world.write("b", config("x", "1"));
    world.settle();
    assert_eq!(world.invalid.len(), 1);
    world.remove("a");
    assert_eq!(world.settle(), 1, "only the complaint goes");
    assert_eq!(world.seen["x"], "1");
    assert_eq!(world.settle(), 0);
}

#[test]
fn objects_beyond_the_limit_are_refused_and_known_ones_can_still_change() {
    let mut world = World::with(2);
    world.write("a", config("x", "1") + &config("y", "1"));
    world.write("b", config("z", "1"));
    world.settle();
    assert_eq!(world.seen.keys().collect::<Vec<_>>(), ["x", "y"]);
    let messages: Vec<_> = world.invalid.iter().map(ToString::to_string).collect();
    assert_eq!(messages, ["b, document 1, ConfigMap default/z: more than 2 objects: ignored until the file changes"]);
    world.write("a", config("x", "2"));
    world.settle();
    assert_eq!(world.seen["x"], "2");
    world.write("b", config("z", "2"));
    world.settle();
    assert_eq!(world.seen.keys().collect::<Vec<_>>(), ["x", "z"]);
    assert!(world.invalid.is_empty());
}

#[test]
fn no_more_complaints_are_told_than_the_limit() {
    let mut world = World::with(MAX_OBJECTS);
    world.write("a", "---\nx: y\n".repeat(MAX_INVALID + 10));
    assert_eq!(world.settle(), MAX_INVALID);
}

fn text() -> impl Strategy<Value = Option<Vec<(&'static str, &'static str)>>> {
    option::weighted(0.8, vec((select(vec!["x", "y", "z"]), select(vec!["1", "2"])), 0..3))
}

proptest! {
    #[test]
    fn what_is_told_adds_up_to_the_first_of_each_object(
        steps in vec((select(vec!["a", "b", "c"]), text(), any::<bool>()), 0..30),
    ) {
        let mut world = World::with(MAX_OBJECTS);
        for (file, text, settle) in steps {
            match text {
                Some(objects) => {
                    world.write(file, objects.into_iter().map(|(name, value)| config(name, value)).collect());
                }
                None => world.remove(file),
            }
            if settle {
                world.settle();
            }
        }
        world.settle();
        let mut expected = BTreeMap::new();
        let mut twice = 0;
        for text in world.files.values() {
            for parsed in parse(text, Format::Yaml) {
                let Object::ConfigMap(object) = *parsed.outcome.unwrap() else { panic!("a ConfigMap") };
                match expected.entry(object.metadata.name.unwrap()) {
                    Entry::Vacant(first) => drop(first.insert(object.data.unwrap()["v"].clone())),
                    Entry::Occupied(_) => twice += 1,
                }
            }
        }
        prop_assert_eq!(&world.seen, &expected);
        prop_assert_eq!(world.invalid.len(), twice);
        for file in ["a", "b", "c"] {
            world.remove(file);
        }
        world.settle();
        prop_assert!(world.seen.is_empty() && world.invalid.is_empty());
        prop_assert!(world.store.objects.is_empty() && world.store.contested.is_empty() && world.store.files.is_empty());
    }

    #[test]
    fn no_text_makes_it_panic(text in "(kind: |metadata:\n|  name: |---\n|- |[a-z\\{\\}\\[\\]:\t\"'&*]|\n){0,40}") {
        let mut world = World::with(MAX_OBJECTS);
        world.write("a", text);
        world.store.settle(|_| None);
    }
}
