//! Patterns of channels, as grants have them.
//!
//! Does: reads patterns. Owns: what one may look like. Never knows: how it is matched.
//! Keeps: a pattern could match a channel.

use crate::model::check_stream_name;

/// Longest pattern of channels, in bytes.
const PATTERN_MAX: usize = 512;

/// Channels by name: `stream/name`, where `*` may stand last and is any rest, and `{sub}` is the token's subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChannelPattern(String);

impl ChannelPattern {
    /// The pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes a pattern; none unless it could match a channel.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bad = |c: char| c.is_control() || c.is_whitespace() || "*{}".contains(c);
        // What a subject may be is a name without `/`, so `s` stands for any.
        let plain = text.replace("{sub}", "s");
        let body = plain.strip_suffix('*').unwrap_or(&plain);
        let fits = match body.split_once('/') {
            Some((stream, name)) => {
                check_stream_name(stream).is_ok() && (!name.is_empty() || plain.ends_with('*'))
            }
            None => plain.ends_with('*') && (body.is_empty() || check_stream_name(body).is_ok()),
        };
        (fits && text.len() <= PATTERN_MAX && !body.contains(bad)).then(|| Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_taken_if_they_could_match() {
        for good in [
            "departures/JFK",
            "departures/*",
            "departures/J*",
            "dep*",
            "*",
            "users/{sub}",
            "users/{sub}/*",
            "{sub}/a",
            "a/b/c",
        ] {
            assert_eq!(
                ChannelPattern::parse(good).map(|p| p.as_str().to_owned()),
                Some(good.to_owned())
            );
        }
        let long = format!("a/{}", "x".repeat(PATTERN_MAX));
        for bad in [
            "", "a", "a/", "/", "/a", "A/b", "A*", "a/*b", "*/a", "a/b c", "a/{user}", "a/{",
            "a/**", "a/\n*", &long,
        ] {
            assert_eq!(ChannelPattern::parse(bad), None, "{bad:?}");
        }
    }
}
