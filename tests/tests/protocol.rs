//! The wire contract: `docs/protocol.md`, its schema and the shared vectors say what the code does.
//!
//! The behaviour of clients (`behaviour.json`) is run by the clients' own tests; here its messages are held to the schema,
//! so that no client is tested with what no gateway sends.

#![allow(
    clippy::unwrap_used,
    reason = "a vector of another shape ends the test that reads it"
)]

#[path = "protocol/page.rs"]
mod page;
#[path = "protocol/vectors.rs"]
mod vectors;

use std::{fs, path::Path};

use serde_json::Value;

/// A file of the repository.
fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()))
}

fn json(path: &str) -> Value {
    serde_json::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A list of a vector file; never empty.
fn list(path: &str, key: &str) -> Vec<Value> {
    let list = json(path)[key].as_array().cloned().unwrap_or_default();
    assert!(!list.is_empty(), "{path} has no {key}");
    list
}

/// The text of a field.
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("{value} has no text {field}"))
}
