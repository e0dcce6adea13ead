//! Where in a record something is.
//!
//! Does: reads selectors. Owns: what one may look like. Never knows: records.
//! Keeps: what was read is bounded, and a pointer that follows RFC 6901.

use std::fmt;

/// Longest selector, in bytes.
const SELECTOR_MAX: usize = 512;

/// Where in a record something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// `$key` or `$key/pointer`: a place in the key, as a JSON pointer; empty: the whole key as text.
    Key(String),
    /// `$header.name`: a header by its name.
    Header(String),
    /// `$value/pointer`: a place in the value, as a JSON pointer; never empty.
    Value(String),
}

impl Selector {
    /// Reads a selector; none when it is no such text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > SELECTOR_MAX || text.contains(char::is_control) {
            return None;
        }
        if let Some(name) = text.strip_prefix("$header.") {
            let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
            return fits.then(|| Self::Header(name.to_owned()));
        }
        if let Some(pointer) = text.strip_prefix("$key") {
            return (pointer.is_empty() || is_pointer(pointer))
                .then(|| Self::Key(pointer.to_owned()));
        }
        let pointer = text.strip_prefix("$value")?;
        is_pointer(pointer).then(|| Self::Value(pointer.to_owned()))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(pointer) => write!(f, "$key{pointer}"),
            Self::Header(name) => write!(f, "$header.{name}"),
            Self::Value(pointer) => write!(f, "$value{pointer}"),
        }
    }
}

/// A JSON pointer of RFC 6901 that is not empty.
fn is_pointer(text: &str) -> bool {
    text.starts_with('/')
        && text
            .split('~')
            .skip(1)
            .all(|rest| rest.starts_with(['0', '1']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read() {
        let key = |pointer: &str| Some(Selector::Key(pointer.into()));
        assert_eq!(Selector::parse("$key"), key(""));
        assert_eq!(Selector::parse("$key/0"), key("/0"));
        assert_eq!(Selector::parse("$key/a~1b~0c/"), key("/a~1b~0c/"));
        assert_eq!(
            Selector::parse("$header.x-kind"),
            Some(Selector::Header("x-kind".into()))
        );
        assert_eq!(
            Selector::parse("$value/ts"),
            Some(Selector::Value("/ts".into()))
        );
        for text in ["$key", "$key/a~1b", "$header.x-kind", "$value/ts"] {
            assert_eq!(Selector::parse(text).unwrap().to_string(), text);
        }
        let long = format!("$key/{}", "x".repeat(SELECTOR_MAX));
        for bad in [
            "",
            "key",
            "$key0",
            "$key.a",
            "$key/~",
            "$key/~2",
            "$value",
            "$header",
            "$header.",
            "$header.a b",
            "$key/\n",
            &long,
        ] {
            assert_eq!(Selector::parse(bad), None, "{bad:?}");
        }
    }
}
