//! The walk over a configuration as written.
//!
//! Does: takes values out of the file's tables by key, lets the environment's take their place, and notes whatever is
//! not as expected: wrong types and values, unknown keys and variables, broken TOML and JSON.
//! Owns: the list of problems. Never knows: which keys there are; the sections say so by asking.
//! Keeps: it never stops at a problem; a value that may be secret is never shown; a problem is one line.

mod problem;
mod section;
mod value;

pub use problem::{Problem, Problems};
pub(super) use section::Section;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::FILE_BYTES_MAX;

/// What the names of our variables begin with.
pub(super) const PREFIX: &str = "TIDEGATE_";
/// Variables that are ours, but not the configuration's.
const OTHERS: [&str; 3] = ["TIDEGATE_LOG", "TIDEGATE_TOKEN", "TIDEGATE_BIN"];

/// One walk: what is left of the environment, and what was noted.
pub(super) struct Walk {
    variables: RefCell<BTreeMap<String, String>>,
    /// Key's path → the variable that gave its value.
    given_by: RefCell<BTreeMap<String, String>>,
    /// The paths of all keys that sections asked for; `[]` for each place in a list.
    asked: RefCell<BTreeSet<String>>,
    /// What must be unique in its list, by key → where it was first.
    seen: RefCell<HashMap<(String, String), String>>,
    problems: RefCell<Vec<Problem>>,
    base: PathBuf,
}

impl Walk {
    /// Begins; `base` is where relative paths of key files start.
    pub(super) fn new(env: impl Iterator<Item = (String, String)>, base: &Path) -> Self {
        let ours = |(name, value): &(String, String)| {
            name.starts_with(PREFIX)
                && !OTHERS.contains(&name.as_str())
                && !is_service_link(name, value)
        };
        Self {
            variables: RefCell::new(env.filter(ours).collect()),
            given_by: RefCell::default(),
            asked: RefCell::default(),
            seen: RefCell::default(),
            problems: RefCell::default(),
            base: base.to_owned(),
        }
    }

    /// The file's outermost table; an empty one when it cannot be read.
    pub(super) fn root(&self, text: &str) -> Section<'_> {
        let table = if text.len() > FILE_BYTES_MAX {
            self.note(
                "",
                "a text that is too long".into(),
                format!("{FILE_BYTES_MAX} bytes at most"),
            );
            Table::new()
        } else {
            text.parse::<Table>().unwrap_or_else(|error| {
                let message = error.message().replace(char::is_control, " ");
                self.note(
                    &place(text, error.span()),
                    format!("broken TOML ({message})"),
                    "TOML 1.0".into(),
                );
                Table::new()
            })
        };
        Section::new(self, String::new(), table)
    }

    /// Notes a problem at a key's path.
    pub(super) fn note(&self, path: &str, found: String, expected: String) {
        let given_by = self.given_by.borrow();
        let within = |part: &str| {
            path.strip_prefix(part)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let variable = given_by
            .iter()
            .filter(|(part, _)| within(part))
            .max_by_key(|(part, _)| part.len());
        let variable = variable.map(|(_, name)| name.clone());
        self.problems.borrow_mut().push(Problem {
            path: path.to_owned(),
            variable,
            found,
            expected,
        });
    }

    /// Whether no problem was noted at any of these paths: only then a relation between them means something.
    pub(super) fn clean(&self, paths: &[&str]) -> bool {
        !self
            .problems
            .borrow()
            .iter()
            .any(|problem| paths.contains(&problem.path.as_str()))
    }

    /// Notes the variables that no section asked for.
    pub(super) fn note_unknown_variables(&self) {
        let names: BTreeSet<String> = self
            .asked
            .borrow()
            .iter()
            .filter_map(|path| variable_of(path))
            .collect();
        for (name, _) in self.variables.take() {
            let section = name.splitn(3, '_').take(2).collect::<Vec<_>>().join("_") + "_";
            let near: Vec<_> = names
                .iter()
                .filter(|known| known.starts_with(&section))
                .map(String::as_str)
                .collect();
            let expected = if near.is_empty() {
                "a key's path in capitals, such as TIDEGATE_LISTEN_ADDRESS".to_owned()
            } else {
                format!("one of {}", near.join(", "))
            };
            self.note(
                &problem::show_key(&name),
                "an unknown variable".into(),
                expected,
            );
        }
    }

    /// Everything that was noted, in the order of the walk.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// Where relative paths of key files start.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// The paths of all keys that were asked for.
    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    /// Takes the variable that gives this key's value, if it is set.
    fn variable(&self, path: &str) -> Option<String> {
        let name = variable_of(path)?;
        let text = self.variables.borrow_mut().remove(&name)?;
        self.given_by.borrow_mut().insert(path.to_owned(), name);
        Some(text)
    }

    /// Whether a variable gives this key's value, or that of a key in it.
    fn has_variable(&self, path: &str) -> bool {
        let Some(name) = variable_of(path) else {
            return false;
        };
        let within = |set: &String| {
            set.strip_prefix(&name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        self.variables.borrow().keys().any(within)
    }
}

/// The variable of a key; keys in lists have none, the list's own takes them all.
fn variable_of(path: &str) -> Option<String> {
    (!path.contains('['))
        .then(|| format!("{PREFIX}{}", path.to_ascii_uppercase().replace('.', "_")))
}

/// Whether Kubernetes set this variable, as it does in every pod beside a service whose name begins with `tidegate`.
fn is_service_link(name: &str, value: &str) -> bool {
    let of_port = |rest: &str| {
        let parts: Vec<_> = rest.split('_').collect();
        matches!(parts[..], [number, protocol] | [number, protocol, "PROTO" | "PORT" | "ADDR"]
            if number.parse::<u16>().is_ok() && ["TCP", "UDP", "SCTP"].contains(&protocol))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name
            .match_indices("_PORT_")
            .any(|(at, found)| of_port(&name[at + found.len()..]))
}

/// Where in the text, as people count.
fn place(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let before = text
        .get(..span.map_or(0, |span| span.start))
        .unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    format!("line {line}, column {column}")
}

/// A value that a variable gave as JSON. The message never shows the value.
fn from_json(text: &str) -> Result<Value, String> {
    let json = serde_json::from_str(text).map_err(|error| format!("broken JSON ({error})"))?;
    value::from_json(json).ok_or_else(|| "JSON with null or a number that is too large".to_owned())
}
