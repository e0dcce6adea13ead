//! The page names exactly the codes and operations that the code has.

use std::collections::BTreeSet;

use tidegate::protocol::{CloseCode, ErrorCode, parse_client};

use super::{json, list, read, text};

/// The rows of the first table under a heading, each as its cells without back-ticks.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = read("docs/protocol.md");
    let section = page
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("docs/protocol.md has no {heading}"))
        .1;
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect()
    };
    let rows: Vec<Vec<String>> = rows.skip(2).map(cells).collect();
    assert!(!rows.is_empty(), "{heading} has no table");
    rows
}

fn first_cells(heading: &str) -> BTreeSet<String> {
    table(heading)
        .into_iter()
        .map(|mut row| row.remove(0))
        .collect()
}

/// The words of an `enum` in the schema.
fn enumerated(pointer: &str) -> Vec<String> {
    let schema = json("docs/protocol.schema.json");
    let words = schema
        .pointer(pointer)
        .unwrap_or_else(|| panic!("no {pointer}"));
    serde_json::from_value(words.clone()).unwrap()
}

#[test]
fn the_page_and_the_schema_name_every_error_code_and_no_other() {
    let expected: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), code.http_status().to_string()))
        .collect();
    let found: Vec<_> = table("## Error codes")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    assert_eq!(found, expected);
    let words: Vec<_> = expected.into_iter().map(|(word, _)| word).collect();
    assert_eq!(enumerated("/$defs/error/properties/code/enum"), words);
}

#[test]
fn the_page_and_the_schema_name_every_close_code_and_no_other() {
    let expected: Vec<_> = CloseCode::ALL
        .iter()
        .map(|code| (code.number().to_string(), code.as_str().to_owned()))
        .collect();
    let found: Vec<_> = table("## Close codes")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    assert_eq!(found, expected);
    let words: Vec<_> = expected.into_iter().map(|(_, word)| word).collect();
    assert_eq!(enumerated("/$defs/bye/properties/code/enum"), words);
}

#[test]
fn clients_may_send_exactly_the_operations_that_the_page_names() {
    let refusal = parse_client(r#"{"op":""}"#).remove(0).unwrap_err().refusal;
    let known = refusal.message.split_once("known are ").unwrap().1;
    let known: BTreeSet<String> = known.split(", ").map(str::to_owned).collect();
    assert_eq!(first_cells("### From the client"), known);

    let vectors = list("tests/vectors/client.json", "vectors");
    let parsed = vectors
        .iter()
        .flat_map(|vector| vector["parsed"].as_array().unwrap());
    let tried: BTreeSet<String> = parsed
        .filter_map(|one| Some(one["op"].as_str()?.to_owned()))
        .collect();
    assert_eq!(tried, known, "each operation has a vector");
}

#[test]
fn the_gateway_sends_exactly_the_operations_that_the_page_names() {
    // `write.rs` is where every message is written; its operations stand there as literals.
    let source = read("server/src/protocol/write.rs");
    let mut written: BTreeSet<String> = source
        .split("op(out, \"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    written.insert("pong".to_owned());
    assert_eq!(first_cells("### From the server"), written);

    let tried: BTreeSet<String> = list("tests/vectors/server.json", "vectors")
        .iter()
        .filter_map(|vector| {
            let json: serde_json::Value = serde_json::from_str(text(vector, "json")).unwrap();
            Some(json["op"].as_str()?.to_owned())
        })
        .collect();
    assert_eq!(tried, written, "each operation has a vector");
}
