//! The environment lies over the file.

use super::*;

#[test]
fn the_environment_wins() {
    let file = "[listen]\nworkers = 3\n[session]\noutbox = { bytes = \"2MiB\", frames = 7 }\n[[streams]]\nname = \"a\"";
    let config = read(
        file,
        &[
            ("TIDEGATE_LISTEN_ADDRESS", "[::1]:80"),
            ("TIDEGATE_LISTEN_WORKERS", "2"),
            ("TIDEGATE_LISTEN_ORIGINS", "[\"https://a.example\"]"),
            ("TIDEGATE_ADMIN_TOKEN", "1234567890123456"),
            ("TIDEGATE_SESSION_OUTBOX_BYTES", "3145728"),
            ("TIDEGATE_SESSION_HEARTBEAT", "100ms"),
            ("TIDEGATE_LIMITS_PUBLISHES_PER_SECOND", "9"),
            ("TIDEGATE_ACCESS_ANONYMOUS_CAN", "[\"subscribe\"]"),
            ("TIDEGATE_ACCESS_ANONYMOUS_CHANNELS", "[\"a/*\"]"),
            (
                "TIDEGATE_STREAMS",
                "[{\"name\":\"b\",\"tail\":{\"bytes\":\"2MiB\"},\"default\":{\"x\":1}}]",
            ),
            ("TIDEGATE_LOG", "debug"),
            ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
            ("TIDEGATE_SERVICE_PORT_HTTP", "80"),
            ("TIDEGATE_PORT", "tcp://10.0.0.1:80"),
            ("TIDEGATE_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ],
    )
    .unwrap();
    assert_eq!(config.listen.address.to_string(), "[::1]:80");
    assert_eq!(
        (config.listen.workers, config.listen.origins),
        (2, vec!["https://a.example".to_owned()])
    );
    assert_eq!(config.admin.token.as_deref(), Some("1234567890123456"));
    assert_eq!(
        (config.session.outbox.bytes, config.session.outbox.frames),
        (3 << 20, 7)
    );
    assert_eq!(config.session.heartbeat.as_millis(), 100);
    assert_eq!(config.limits.publishes_per_second.map(u32::from), Some(9));
    let anonymous = config.access.anonymous.unwrap();
    assert_eq!(
        (anonymous.channels[0].as_str(), &anonymous.can[..]),
        ("a/*", &[Permission::Subscribe][..])
    );
    let streams: Vec<_> = config
        .streams
        .iter()
        .map(|s| (s.name.as_str(), s.tail.bytes, s.default.as_deref()))
        .collect();
    assert_eq!(streams, [("b", 2 << 20, Some("{\"x\":1}"))]);
}

#[test]
fn mistakes_of_the_environment_name_the_variable() {
    check_with(
        "[listen]\nworkers = 0",
        &[("TIDEGATE_LISTEN_WORKERS", "two")],
        &[
            "listen.workers (from TIDEGATE_LISTEN_WORKERS): found \"two\", expected an integer from 1 to 1024",
        ],
    );
    check_with(
        "",
        &[
            ("TIDEGATE_STREAMS", "[{\"name\":\"A\"},"),
            ("TIDEGATE_ACCESS_API_KEYS", "[null]"),
        ],
        &[
            "streams (from TIDEGATE_STREAMS): found broken JSON (EOF while parsing a value at line 1 column 14), expected a list \
         or table as JSON",
            "access.api_keys (from TIDEGATE_ACCESS_API_KEYS): found JSON with null or a number that is too large, expected a \
         list or table as JSON",
        ],
    );
    check_with(
        "",
        &[
            ("TIDEGATE_STREAMS", "[{\"name\":\"A\"}]"),
            ("TIDEGATE_FOO", "1"),
            ("TIDEGATE_ADMIN_TOKE", "1"),
        ],
        &[
            "streams[0].name (from TIDEGATE_STREAMS): found \"A\", expected 1 to 63 of a-z, 0-9, _ and -, beginning with a \
         letter or digit",
            "TIDEGATE_ADMIN_TOKE: found an unknown variable, expected one of TIDEGATE_ADMIN_ADDRESS, TIDEGATE_ADMIN_HOSTS, TIDEGATE_ADMIN_TOKEN",
            "TIDEGATE_FOO: found an unknown variable, expected a key's path in capitals, such as TIDEGATE_LISTEN_ADDRESS",
        ],
    );
    check_with(
        "[admin]\nadress = 1",
        &[("TIDEGATE_LISTEN_WORKERS", "0"), ("TIDEGATE_LISTENER", "1")],
        &[
            "listen.workers (from TIDEGATE_LISTEN_WORKERS): found 0, expected an integer from 1 to 1024",
            "admin.adress: found an unknown key, expected one of address, token, hosts",
            "TIDEGATE_LISTENER: found an unknown variable, expected a key's path in capitals, such as TIDEGATE_LISTEN_ADDRESS",
        ],
    );
}
