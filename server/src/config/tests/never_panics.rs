//! Whatever is written, the answer is a configuration or problems.

use proptest::prelude::*;

use super::*;

#[test]
fn deep_nesting_is_refused() {
    let keys = "a.".repeat(100_000);
    for text in [
        format!("default = {}", "[".repeat(100_000)),
        format!("default = {}", "{a=".repeat(100_000)),
        format!("[[streams]]\nname = \"a\"\ndefault.{keys}b = 1"),
        format!("[{keys}b]"),
        format!("default = {{ {keys}b = 1 }}"),
    ] {
        assert!(read(&text, &[]).is_err());
    }
    let json = format!("[{{\"default\":{}", "[".repeat(100_000));
    assert!(read("", &[("TIDEGATE_STREAMS", &json)]).is_err());
}

#[test]
fn broken_text_does_not_show_secrets() {
    for text in [
        "token = s3cret",
        "token = \"s3cret",
        "token = \"s3cret\"\ntoken = \"s3cret\"",
        "token = \"\\s3cret\"",
    ] {
        let problems = read(
            &format!("[admin]\n{text}"),
            &[("TIDEGATE_ACCESS_API_KEYS", "[s3cret")],
        )
        .unwrap_err();
        assert!(!problems.to_string().contains("s3cret"), "{problems}");
    }
}

fn tomlish() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "address",
        "workers",
        "origins",
        "anonymous",
        "channels",
        "can",
        "jwt_keys",
        "api_keys",
        "sha256",
        "heartbeat",
        "live_for",
        "outbox",
        "bytes",
        "frames",
        "name",
        "mode",
        "tail",
        "source",
        "kind",
        "row",
        "default",
        "partitions",
        "token",
        "a.b",
        "\"\\n\"",
    ]);
    let value = prop_oneof![
        "[0-9]{1,25}(ms|s|m|h|d|B|KiB|TiB)?".prop_map(|text| format!("\"{text}\"")),
        "-?[0-9]{1,20}",
        "\"[^\"\\\\\\x00-\\x1f]{0,20}\"",
        Just("[]".to_owned()),
        Just("[{}, 1, [\"a/*\"], {id = \"é\"}]".to_owned()),
        Just("{ bytes = 1, age = \"0s\", kind = \"é\" }".to_owned()),
        Just("nan".to_owned()),
        Just("1979-05-27".to_owned()),
        ".{0,10}",
    ];
    let pair = (key, value).prop_map(|(key, value)| format!("{key} = {value}"));
    let head = prop::sample::select(vec![
        "[listen]",
        "[admin]",
        "[access]",
        "[session]",
        "[limits]",
        "[[streams]]",
        "[[streams]]",
        "[streams.source]",
        "[[listen]]",
        "#",
    ]);
    prop::collection::vec(
        prop_oneof![4 => pair, 2 => head.prop_map(str::to_owned), 1 => ".{0,20}"],
        0..20,
    )
    .prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in tomlish(), name in "TIDEGATE_[A-Z_]{0,20}", value in ".{0,30}") {
        for variable in [&name[..], "TIDEGATE_STREAMS", "TIDEGATE_LISTEN_WORKERS"] {
            if let Err(problems) = read(&text, &[(variable, &value)]) {
                prop_assert!(!problems.0.is_empty());
                prop_assert_eq!(problems.to_string().lines().count(), problems.0.len());
            }
        }
    }

    #[test]
    fn no_single_value_makes_it_panic(at in 0_usize..200, value in prop_oneof!["[0-9]{1,20}[a-zA-Z]{0,3}", "\".{0,5}\"", Just("{}".to_owned()), Just("[[]]".to_owned())]) {
        let text = whole_text();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let at = at % lines.len();
        let replaced = lines.iter().enumerate().map(|(i, line)| match line.split_once(" = ") {
            Some((key, _)) if i == at => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        });
        drop(read(&replaced.collect::<String>(), &[]));
    }
}
