//! One table of the walk.
//!
//! Does: hands out its values by key, checked for type and bounds; what is absent or wrong is none, and what is wrong
//! is noted. Owns: the rest of its table. Never knows: what keys mean.
//! Keeps: a section that goes notes the keys that nobody asked for.

use std::{collections::hash_map::Entry, ops::RangeInclusive, path::Path, time::Duration};

use toml::{Table, Value};

use super::{
    super::units::{self, show_duration, show_size},
    Walk, from_json,
    problem::{show_key, show_type, show_value},
    value,
};

/// How a variable's text becomes a value.
#[derive(Clone, Copy)]
enum Kind {
    /// As it stands.
    Text,
    /// An integer if it reads as one, else text.
    Number,
    /// A list or a table.
    Json,
}

/// A table, and how far the walk has come in it.
pub(crate) struct Section<'w> {
    walk: &'w Walk,
    path: String,
    table: Table,
    asked: Vec<&'static str>,
}

impl<'w> Section<'w> {
    pub(super) fn new(walk: &'w Walk, path: String, table: Table) -> Self {
        Self {
            walk,
            path,
            table,
            asked: Vec::new(),
        }
    }

    /// The path of this table.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The path of a key in this table.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Notes a problem with a key of this table.
    pub(crate) fn note(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) {
        self.walk
            .note(&self.path_of(key), found.into(), expected.into());
    }

    /// Whether a key has a value, in the file or in the environment.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key) || self.walk.has_variable(&self.path_of(key))
    }

    /// Notes a key that is absent but must not be.
    pub(crate) fn need(&self, key: &str, expected: &str) {
        if !self.has(key) {
            self.note(key, "nothing", expected);
        }
    }

    /// Notes a value that another table of the same list has under this key; `text` is not shown.
    pub(crate) fn unique(&self, key: &str, text: &str) {
        let path = self.path_of(key);
        let mut seen = self.walk.seen.borrow_mut();
        match seen.entry((without_places(&path), text.to_owned())) {
            Entry::Vacant(entry) => drop(entry.insert(path)),
            Entry::Occupied(entry) => self.note(
                key,
                format!("the same as {}", entry.get()),
                format!("another {key}"),
            ),
        }
    }

    /// Where relative paths of key files start.
    pub(crate) fn base(&self) -> &'w Path {
        self.walk.base()
    }

    /// Forgets the keys that are left, where another problem makes them meaningless.
    pub(crate) fn forget(&mut self) {
        self.table.clear();
    }

    /// A text that `parse` takes.
    pub(crate) fn text<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key, Kind::Text)?;
        let parsed = value.as_str().and_then(parse);
        self.noted(key, parsed, || show_value(&value), expected)
    }

    /// Like [`Self::text`], for texts that no message may show.
    pub(crate) fn secret<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key, Kind::Text)?;
        let parsed = value.as_str().and_then(parse);
        self.noted(key, parsed, || show_type(&value), expected)
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key, Kind::Text)?;
        let parsed = match &value {
            Value::Boolean(flag) => Some(*flag),
            // As a variable gives it.
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        self.noted(key, parsed, || show_value(&value), "true or false")
    }

    /// One of several words.
    pub(crate) fn choice<T: Clone>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let expected = words
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect::<Vec<_>>()
            .join(" or ");
        self.text(key, &expected, |text| {
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, value)| value.clone())
        })
    }

    /// An integer within bounds.
    pub(crate) fn number(&mut self, key: &'static str, bounds: RangeInclusive<u32>) -> Option<u32> {
        let value = self.take(key, Kind::Number)?;
        let parsed = value
            .as_integer()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| bounds.contains(n));
        let expected = format!("an integer from {} to {}", bounds.start(), bounds.end());
        self.noted(key, parsed, || show_value(&value), &expected)
    }

    /// An integer, or a list of integers, that `parse` takes.
    pub(crate) fn numbers<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&[u32]) -> Option<T>,
    ) -> Option<T> {
        // A variable has the list as JSON, and a single number is JSON, too.
        let value = self.take(key, Kind::Json)?;
        let number = |value: &Value| u32::try_from(value.as_integer()?).ok();
        let numbers: Option<Vec<u32>> = match &value {
            Value::Array(items) => items.iter().map(number).collect(),
            one => number(one).map(|one| vec![one]),
        };
        let parsed = numbers.and_then(|numbers| parse(&numbers));
        self.noted(key, parsed, || show_value(&value), expected)
    }

    /// An integer within bounds, as a count of things in memory.
    pub(crate) fn count(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
    ) -> Option<usize> {
        self.number(key, bounds)
            .and_then(|n| usize::try_from(n).ok())
    }

    /// A size within bounds, in bytes.
    pub(crate) fn size(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<usize>,
    ) -> Option<usize> {
        let value = self.take(key, Kind::Number)?;
        let bytes = match &value {
            Value::String(text) => units::parse_size(text),
            other => other.as_integer().and_then(|n| usize::try_from(n).ok()),
        };
        let expected = format!(
            "a size from {} to {}, such as \"16MiB\"",
            show_size(*bounds.start()),
            show_size(*bounds.end())
        );
        self.noted(
            key,
            bytes.filter(|n| bounds.contains(n)),
            || show_value(&value),
            &expected,
        )
    }

    /// A duration within bounds.
    pub(crate) fn duration(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let (min, max) = (show_duration(*bounds.start()), show_duration(*bounds.end()));
        let expected = format!("a duration from {min} to {max}, such as \"5s\"");
        self.text(key, &expected, |text| {
            units::parse_duration(text).filter(|d| bounds.contains(d))
        })
    }

    /// Any value, as JSON text.
    pub(crate) fn json(&mut self, key: &'static str) -> Option<String> {
        let value = self.take(key, Kind::Json)?;
        let json = value::to_json(&value).map(|json| json.to_string());
        self.noted(key, json, || show_value(&value), "a value that JSON has")
    }

    /// A list of texts that `parse` takes; those that it does not take are left out.
    pub(crate) fn texts<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.array(key, expected)?;
        Some(self.each_text(key, &items, (expected, show_value), parse))
    }

    /// Like [`Self::texts`], for texts that no message may show.
    pub(crate) fn secret_texts<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let items = self.array(key, expected)?;
        Some(self.each_text(key, &items, (expected, show_type), parse))
    }

    /// Like [`Self::texts`], of a list that must be there and not be empty.
    pub(crate) fn some_texts<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        self.need(key, expected);
        let Some(items) = self.array(key, expected) else {
            return Vec::new();
        };
        if items.is_empty() {
            self.note(key, "an empty array", expected);
        }
        self.each_text(key, &items, (expected, show_value), parse)
    }

    fn each_text<T>(
        &self,
        key: &str,
        items: &[Value],
        (expected, show): (&str, fn(&Value) -> String),
        parse: impl Fn(&str) -> Option<T>,
    ) -> Vec<T> {
        let parsed = items.iter().enumerate().filter_map(|(i, item)| {
            let parsed = item.as_str().and_then(&parse);
            self.noted(&format!("{key}[{i}]"), parsed, || show(item), expected)
        });
        parsed.collect()
    }

    /// A list of tables; what is none is left out.
    pub(crate) fn tables(&mut self, key: &'static str) -> Option<Vec<Section<'w>>> {
        let items = self.array(key, "a table")?;
        let sections = items.into_iter().enumerate().filter_map(|(i, item)| {
            let key = format!("{key}[{i}]");
            self.as_section(&key, item)
        });
        Some(sections.collect())
    }

    /// A table; an empty one if it is absent.
    pub(crate) fn table(&mut self, key: &'static str) -> Section<'w> {
        let item = self
            .take(key, Kind::Json)
            .unwrap_or_else(|| Value::Table(Table::new()));
        let section = self.as_section(key, item);
        section.unwrap_or_else(|| Section::new(self.walk, self.path_of(key), Table::new()))
    }

    /// What `read` makes of a table, the keys it left noted at once.
    pub(crate) fn within<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Self) -> T) -> T {
        read(&mut self.table(key))
    }

    /// A table, if it is there.
    pub(crate) fn optional_table(&mut self, key: &'static str) -> Option<Section<'w>> {
        let there = self.has(key);
        let section = self.table(key);
        there.then_some(section)
    }

    fn as_section(&self, key: &str, item: Value) -> Option<Section<'w>> {
        match item {
            Value::Table(table) => Some(Section::new(self.walk, self.path_of(key), table)),
            other => self.noted(key, None, || show_type(&other), "a table"),
        }
    }

    fn array(&mut self, key: &'static str, of: &str) -> Option<Vec<Value>> {
        match self.take(key, Kind::Json)? {
            Value::Array(items) => Some(items),
            other => self.noted(
                key,
                None,
                || show_type(&other),
                &format!("an array, each item {of}"),
            ),
        }
    }

    fn noted<T>(
        &self,
        key: &str,
        parsed: Option<T>,
        found: impl FnOnce() -> String,
        expected: &str,
    ) -> Option<T> {
        if parsed.is_none() {
            self.note(key, found(), expected);
        }
        parsed
    }

    fn take(&mut self, key: &'static str, kind: Kind) -> Option<Value> {
        let path = self.path_of(key);
        self.asked.push(key);
        self.walk.asked.borrow_mut().insert(without_places(&path));
        let written = self.table.remove(key);
        let Some(text) = self.walk.variable(&path) else {
            return written;
        };
        match kind {
            Kind::Text => Some(Value::String(text)),
            Kind::Number => Some(text.parse().map_or(Value::String(text), Value::Integer)),
            Kind::Json => from_json(&text)
                .map_err(|found| self.note(key, found, "a list or table as JSON"))
                .ok(),
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (key, _) in &self.table {
            self.note(
                &show_key(key),
                "an unknown key",
                format!("one of {}", self.asked.join(", ")),
            );
        }
    }
}

/// `streams[1].name` → `streams[].name`.
fn without_places(path: &str) -> String {
    let mut rest = path.split('[');
    let first = rest.next().unwrap_or("").to_owned();
    rest.fold(first, |done, part| {
        done + "[" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}
