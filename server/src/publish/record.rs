//! One record of the publish API: text → what is to be appended.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    decode::{own_key, without_line_breaks},
    model::{Change, Channel, RowId},
    source::embedded::NewRecord,
};

/// Longest `id`, in bytes.
pub const ID_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecord<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow, default)]
    row: Option<Cow<'a, str>>,
    #[serde(default)]
    ts: Option<i64>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
}

/// Reads one record for `stream`. `data` is validated, then kept byte for byte but for line breaks outside strings.
///
/// # Errors
/// What is wrong with it, for the publisher.
pub fn parse(stream: &str, line: &[u8]) -> Result<NewRecord, String> {
    // serde would also read an array, field by field.
    if line
        .trim_ascii_start()
        .first()
        .is_some_and(|&byte| byte != b'{')
    {
        return Err("a record is a JSON object".to_owned());
    }
    let raw: RawRecord<'_> = serde_json::from_slice(line).map_err(|error| explain(&error))?;
    let channel =
        Channel::new(stream, &raw.channel).map_err(|error| format!("/channel: {error}"))?;
    let row = raw.row.as_deref().unwrap_or("");
    let row_id = RowId::new(row).map_err(|error| format!("/row: {error}"))?;
    if raw
        .id
        .as_ref()
        .is_some_and(|id| id.is_empty() || id.len() > ID_MAX)
    {
        return Err(format!("/id: an id has 1 to {ID_MAX} bytes"));
    }
    let data = match raw.data.get() {
        "null" => None,
        json => Some(without_line_breaks(Bytes::copy_from_slice(json.as_bytes()))),
    };
    Ok(NewRecord {
        key: own_key(&raw.channel, row),
        change: Change {
            channel,
            row: row_id,
            data,
            ts_ms: 0,
        },
        event_time_ms: raw.ts,
        id: raw.id.map(|id| Arc::from(&*id)),
    })
}

/// serde's words, and for the field that people get wrong most often, ours.
fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if text.contains("expected i64") {
        format!("ts must be an integer of milliseconds ({text})")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_parse() {
        let record = parse(
            "s",
            br#"{"channel":"JFK","row":"B6","ts":7,"data":{"a": [1, 2]},"id":"x"}"#,
        )
        .unwrap();
        assert_eq!(&*record.change.channel, "s/JFK");
        assert_eq!(record.change.data.unwrap(), r#"{"a": [1, 2]}"#);
        assert_eq!(
            (record.event_time_ms, record.id.as_deref()),
            (Some(7), Some("x"))
        );
        assert_eq!(record.key, r#"["JFK","B6"]"#);
        let tombstone = parse("s", b"{\"channel\":\"JFK\",\"data\":\n null}").unwrap();
        assert_eq!(
            (tombstone.change.data, tombstone.change.row.as_str()),
            (None, "")
        );
        let broken = parse("s", b"{\"channel\":\"JFK\",\"data\":{\r\n\"a\":\"\\n\"}}").unwrap();
        assert_eq!(broken.change.data.unwrap(), r#"{"a":"\n"}"#);
    }

    #[test]
    fn bad_records_say_where() {
        let check = |line: &str, word: &str| {
            let error = parse("s", line.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        };
        check("", "EOF");
        check("[\"a\",\"1\",7,{}]", "object");
        check("{\"channel\":\"a\"}", "data");
        check("{\"data\":1}", "channel");
        check("{\"channel\":\"a b\",\"data\":1}", "/channel");
        check(
            "{\"channel\":\"a\",\"data\":1,\"ts\":\"x\"}",
            "ts must be an integer of milliseconds",
        );
        check(
            "{\"channel\":\"a\",\"data\":1,\"ts\":1.5}",
            "ts must be an integer of milliseconds",
        );
        check("{\"channel\":\"a\",\"data\":1,\"x\":1}", "unknown field");
        check("{\"channel\":\"a\",\"data\":1,\"id\":\"\"}", "/id");
        check("{\"channel\":\"a\",\"data\":1} {}", "trailing");
        check(
            &format!(
                "{{\"channel\":\"a\",\"row\":\"{}\",\"data\":1}}",
                "r".repeat(257)
            ),
            "/row",
        );
        assert!(parse("s", b"{\"channel\":\"a\",\"data\":\"\xff\"}").is_err());
    }
}
