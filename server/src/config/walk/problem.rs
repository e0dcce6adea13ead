//! What is wrong with a configuration, for people.
//!
//! Does: shows a problem on one line. Owns: nothing. Never knows: what is right. Keeps: no line breaks, bounded length.

use std::fmt;

use toml::Value;

/// Most characters of a value that a problem shows.
const SHOWN_MAX: usize = 80;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, such as `streams[1].tail.bytes`; else the place in the file, the file, or the variable.
    pub path: String,
    /// The environment's variable that gave the value, if one did.
    pub variable: Option<String>,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if let Some(variable) = &self.variable {
            write!(f, " (from {variable})")?;
        }
        write!(f, ": found {}, expected {}", self.found, self.expected)
    }
}

/// Everything that is wrong with a configuration; shown one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A key as it stands in a path: bare if it can be, else quoted and without line breaks.
pub(super) fn show_key(key: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !key.is_empty() && key.len() <= SHOWN_MAX && key.bytes().all(bare) {
        key.to_owned()
    } else {
        show_text(key)
    }
}

/// A text, quoted and cut.
pub(crate) fn show_text(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_MAX).collect();
    if cut.len() < text.len() {
        format!("{cut:?}…")
    } else {
        format!("{cut:?}")
    }
}

/// A value: itself if it is a single one, else only its type.
pub(super) fn show_value(value: &Value) -> String {
    match value {
        Value::String(text) => show_text(text),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
            value.to_string()
        }
        Value::Array(_) | Value::Table(_) => show_type(value),
    }
}

/// A value's type, for values that may be secret.
pub(super) fn show_type(value: &Value) -> String {
    match value {
        Value::String(text) => format!("a string of {} bytes", text.len()),
        Value::Integer(_) => "an integer".into(),
        Value::Float(_) => "a float".into(),
        Value::Boolean(_) => "a boolean".into(),
        Value::Datetime(_) => "a date".into(),
        Value::Array(_) => "an array".into(),
        Value::Table(_) => "a table".into(),
    }
}
