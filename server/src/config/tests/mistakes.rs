//! Each mistake is told once, with its place.

use super::*;
use crate::model::{Mode, Placement, Policy};

#[test]
fn five_mistakes_of_different_kinds_give_five_problems() {
    let text = r#"
        [listen]
        address = "localhost:9700"
        adress = "127.0.0.1:1"
        [session]
        outbox = { bytes = "1KiB" }
        [[streams]]
        name = "a"
        [[streams]]
        name = "b"
        tail = { bytes = "many" }
        partitions = "1"
    "#;
    check(
        text,
        &[
            "listen.address: found \"localhost:9700\", expected an IP address and a port, such as \"127.0.0.1:9700\"",
            "listen.adress: found an unknown key, expected one of address, workers, origins, backlog",
            "streams[1].partitions: found \"1\", expected an integer from 1 to 1024, or a list of them, oldest first, each a multiple of \
             the one before, since a channel that moves must never come back",
            "streams[1].tail.bytes: found \"many\", expected a size from 1KiB to 16TiB, such as \"16MiB\"",
            "session.outbox.bytes: found 1KiB, expected at least limits.record_bytes (1MiB)",
        ],
    );
}

#[test]
fn each_mistake_is_told_with_its_place() {
    check(
        "a b",
        &[
            "line 1, column 3: found broken TOML (key with no value, expected `=`), expected TOML 1.0",
        ],
    );
    check(
        "[sesion]",
        &[
            "sesion: found an unknown key, expected one of streams, listen, admin, access, session, limits, embedded, cache, copies, materializer, roles",
        ],
    );
    check(
        "\"a\\nb\" = 1",
        &[
            "\"a\\nb\": found an unknown key, expected one of streams, listen, admin, access, session, limits, embedded, cache, copies, materializer, roles",
        ],
    );
    check(
        "listen = 5",
        &["listen: found an integer, expected a table"],
    );
    check(
        "streams = {}",
        &["streams: found a table, expected an array, each item a table"],
    );
    check(
        "[listen]\nworkers = 0",
        &["listen.workers: found 0, expected an integer from 1 to 1024"],
    );
    check(
        "[listen]\nworkers = -1",
        &["listen.workers: found -1, expected an integer from 1 to 1024"],
    );
    check(
        "[session]\nheartbeat = 25",
        &["session.heartbeat: found 25, expected a duration from 100ms to 1h, such as \"5s\""],
    );
    check(
        "[limits]\nmemory = -1",
        &["limits.memory: found -1, expected a size from 16MiB to 16TiB, such as \"16MiB\""],
    );
    check(
        "[listen]\norigins = [\"https://a.example/\", 5, \"*\"]",
        &[
            "listen.origins[0]: found \"https://a.example/\", expected an origin such as \"https://board.example\", in lower \
             case, without path or usual port, or \"*\"",
            "listen.origins[1]: found 5, expected an origin such as \"https://board.example\", in lower case, without path \
             or usual port, or \"*\"",
        ],
    );
}

#[test]
fn streams_are_checked() {
    let stream = |keys: &str| format!("[[streams]]\nname = \"a\"\n{keys}");
    check(
        "[[streams]]",
        &[
            "streams[0].name: found nothing, expected 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit",
        ],
    );
    check(
        "streams = [5, {name = \"a\"}, {name = \"a\"}]",
        &[
            "streams[0]: found an integer, expected a table",
            "streams[2].name: found the same as streams[1].name, expected another name",
        ],
    );
    check(
        &stream("source = { kind = \"rabbit\", brokers = \"a:1\" }"),
        &[
            "streams[0].source.kind: found \"rabbit\", expected \"embedded\" or \"kafka\" or \"redis\"",
        ],
    );
    #[cfg(feature = "kafka")]
    check(
        &stream(
            "row_ttl = \"1h\"\nsource = { kind = \"kafka\", brokers = [\"a\"], topic = \"a/b\", retention = {} }",
        ),
        &[
            "streams[0].source.brokers[0]: found \"a\", expected brokers as \"host:port\", at least one",
            "streams[0].source.topic: found \"a/b\", expected 1 to 249 of A-Z, a-z, 0-9, ., _ and -",
            "streams[0].source.retention: found an unknown key, expected one of kind, brokers, tls, ca_file, cert_file, key_file, sasl, user, password_file, topic, timeout, publish_timeout, compacts_after, tombstones_kept, history, folds_alone",
            "streams[0].row_ttl: found a duration, expected none: of a stream of Kafka, rows are deleted by whoever writes them",
        ],
    );
    #[cfg(feature = "kafka")]
    check(
        &stream("source = { kind = \"kafka\", brokers = [\"a:1\"], compacts_after = \"5s\" }"),
        &[
            "streams[0].source.compacts_after: found 5s, expected longer than streams[0].freshness_slo (5s)",
        ],
    );
    check(
        &stream("eager = false\nlinger = \"1ms\""),
        &[
            "streams[0].linger: found \"1ms\", expected a duration from 1s to 1d, such as \"5s\"",
            "streams[0].eager: found false, expected true, or nothing: an embedded log is in this process and always read",
        ],
    );
    #[cfg(feature = "kafka")]
    check(
        &stream("source = { kind = \"kafka\" }"),
        &[
            "streams[0].source.brokers: found nothing, expected brokers as \"host:port\", at least one",
        ],
    );
    check(
        &stream("mode = \"events\"\nslow_consumer = \"conflate\""),
        &[
            "streams[0].slow_consumer: found \"conflate\", expected \"drop_oldest\" or \"disconnect\", since mode is \"events\"",
        ],
    );
    check(
        &stream("mode = \"events\"\nrow_ttl = \"1d\""),
        &[
            "streams[0].row_ttl: found \"1d\", expected no time, since mode is \"events\" and events have no rows",
        ],
    );
    check(
        &stream("slow_consumer = \"drop_oldest\""),
        &[
            "streams[0].slow_consumer: found \"drop_oldest\", expected \"conflate\" or \"disconnect\", since mode is \"view\"",
        ],
    );
    check(
        &stream("mode = \"event\"\nslow_consumer = \"drop_oldest\""),
        &["streams[0].mode: found \"event\", expected \"view\" or \"events\""],
    );
    check(
        &stream("channel = \"$value/0\"\nrow = \"$header.a\"\nevent_time = \"ts\""),
        &[
            "streams[0].channel: found \"$value/0\", expected $key or $key/pointer, since tombstones have no value and \
             embedded records no headers",
            "streams[0].row: found \"$header.a\", expected \"none\", $key or $key/pointer, since tombstones have no value \
             and embedded records no headers",
            "streams[0].event_time: found \"ts\", expected $key, $key/pointer or $value/pointer, since embedded records \
             have no headers",
        ],
    );
    check(
        &stream("placement = \"spread\"\npartitions = 65"),
        &[
            "streams[0].partitions: found 65, expected at most 64 where placement is \"spread\", so that a token fits",
        ],
    );
    let counts = "an integer from 1 to 1024, or a list of them, oldest first, each a multiple of the one before, since a channel that \
                  moves must never come back";
    let kafka = "source = { kind = \"kafka\", brokers = [\"k:9092\"], topic = \"t\" }";
    let cached = format!(
        "[cache]\nredis = [\"redis://r:6379\"]\n{}",
        stream(&format!("partitions = [2, 4]\n{kafka}"))
    );
    for (written, found, expected) in [
        (stream("partitions = []"), "an array", counts),
        (stream("partitions = [4, 6]"), "an array", counts),
        (stream("partitions = [512, 2048]"), "an array", counts),
        (
            stream("partitions = [2, 4]"),
            "[2, 4]",
            "one integer, since the partitions of an embedded log never become more",
        ),
        (
            stream(&format!(
                "partitions = [2, 4]\nplacement = \"spread\"\n{kafka}"
            )),
            "[2, 4]",
            "one integer, since placement is \"spread\" and nobody knows where a row was before",
        ),
        (
            cached,
            "[2, 4]",
            "one integer, since a cache holds its views, which keeps no graves; with cache = \"none\" nodes fold them themselves",
        ),
    ] {
        let told = format!("streams[0].partitions: found {found}, expected {expected}");
        check(&written, &[&told]);
    }
    let grown = read(&stream(&format!("partitions = [2, 4, 12]\n{kafka}")), &[]).unwrap();
    let grown = &grown.streams[0];
    assert_eq!(
        (grown.partitions, grown.generations.counts()),
        (12, &[2, 4, 12][..])
    );
    check(
        &stream("default = nan"),
        &["streams[0].default: found nan, expected a value that JSON has"],
    );
    for (what, found, expected) in [
        (
            "default = [1]",
            "[1]",
            "an object with the data of each row, under the row's id of 1 to 256 bytes",
        ),
        (
            "default = {}\nmode = \"events\"",
            "{}",
            "none, since mode is \"events\" and events have no rows",
        ),
        (
            "default = {}\nplacement = \"spread\"\npartitions = 2",
            "{}",
            "none, since placement is \"spread\" and no partition knows which of its rows are its own",
        ),
    ] {
        let told = format!("streams[0].default: found {found}, expected {expected}");
        check(&stream(what), &[&told]);
    }
    let config = read(
        &stream("row = \"none\"\ndefault = [1979-05-27, {b = 1.5}]"),
        &[],
    )
    .unwrap();
    assert_eq!(
        config.streams[0].default.as_deref(),
        Some("[\"1979-05-27\",{\"b\":1.5}]")
    );
    let spread = "mode = \"events\"\nrow = \"none\"\nplacement = \"spread\"\npartitions = 64";
    let config = read(&stream(spread), &[]).unwrap();
    let stream = &config.streams[0];
    assert_eq!(
        (stream.mode, stream.slow_consumer),
        (Mode::Events, Policy::DropOldest)
    );
    assert_eq!(
        (stream.placement, stream.partitions, &stream.row),
        (Placement::Spread, 64, &None)
    );
    assert!(!config.creates_streams);
    assert!(!read("streams = []", &[]).unwrap().creates_streams);
}

#[test]
fn access_is_checked_and_secrets_are_not_shown() {
    let hash = "0f".repeat(32);
    check(
        &format!(
            "[access]\napi_keys = [{{ id = \"a\", sha256 = \"s3cret\", channels = [], can = [\"read\"] }}, \"s3cret\",\n\
             {{ id = \"a\", sha256 = \"{hash}\", channels = [\"a/*\"], can = [\"publish\"] }},\n\
             {{ id = \"b\", sha256 = \"{hash}\", channels = [\"a/*b\"] }}]\n[admin]\ntoken = \"s3cret\""
        ),
        &[
            "admin.token: found a string of 6 bytes, expected 16 to 512 visible ASCII characters",
            "access.api_keys[1]: found a string of 6 bytes, expected a table",
            "access.api_keys[0].sha256: found a string of 6 bytes, expected the key's SHA-256, 64 hexadecimal digits",
            "access.api_keys[0].channels: found an empty array, expected stream/name, where * may stand last and {sub} is \
             the only placeholder",
            "access.api_keys[0].can[0]: found \"read\", expected \"subscribe\" or \"publish\"",
            "access.api_keys[2].id: found the same as access.api_keys[0].id, expected another id",
            "access.api_keys[3].sha256: found the same as access.api_keys[2].sha256, expected another sha256",
            "access.api_keys[3].channels[0]: found \"a/*b\", expected stream/name, where * may stand last and {sub} is the \
             only placeholder",
            "access.api_keys[3].can: found nothing, expected \"subscribe\" or \"publish\"",
        ],
    );
    check(
        "[access]\njwt_keys = [{ id = \"k\", algorithm = \"ES384\", secret = \"s3cret\" }, { id = \"l\", algorithm = \"HS256\", secret = \"s3cret\" }, { algorithm = \"HS256\" }]",
        &[
            "access.jwt_keys[0].algorithm: found \"ES384\", expected \"HS256\" or \"RS256\" or \"ES256\" or \"EdDSA\"",
            "access.jwt_keys[1].secret: found a string of 6 bytes, expected 32 bytes to 64KiB",
            "access.jwt_keys[2].id: found nothing, expected an id, 1 to 128 visible ASCII characters",
            "access.jwt_keys[2].file: found nothing, expected file or secret",
        ],
    );
    check(
        "[access]\nanonymous = { channels = [\"u/{sub}\"], can = [\"subscribe\"] }\ncookie = \"a\"\n[listen]\norigins = [\"*\"]",
        &[
            "access.anonymous.channels[0]: found \"u/{sub}\", expected stream/name, where * may stand last; {sub} is nobody \
             here",
            "listen.origins: found \"*\", expected the origins that may use access.cookie: with \"*\" any page could act for \
             its visitors",
        ],
    );
    let secret = "0123456789abcdef0123456789abcdef";
    let config = read(&format!("[access]\njwt_keys = [{{ id = \"k\", algorithm = \"HS256\", secret = \"{secret}\" }}]\n[admin]\ntoken = \"{secret}\""), &[]).unwrap();
    assert_eq!(config.access.jwt_keys[0].key, secret.as_bytes());
    assert!(
        !format!("{config:?}").contains(&secret[..8])
            && !format!("{config:?}").contains("48, 49, 50")
    );
}

#[test]
fn what_belongs_to_brokers_with_tls_and_sasl_is_whole_and_shows_no_secret() {
    let directory = Directory::new("kafka");
    directory.write("empty", b" \n");
    directory.write("password", b"hidden-words\n");
    directory.write("no.pem", b"hidden-words");
    let key = std::fs::read(key_file("ed25519.private")).unwrap();
    directory.write("key.pem", &key);
    let certificate = std::fs::read(key_file("certificate")).unwrap();
    directory.write("ca.pem", &certificate);
    let read = |keys: &str| {
        let text = format!(
            "[[streams]]\nname = \"a\"\nsource = {{ kind = \"kafka\", brokers = [\"a:1\"], {keys} }}"
        );
        let file = directory.write("tidegate.toml", text.as_bytes());
        Config::load(Some(&file), iter::empty())
    };
    let check = |keys: &str, expected: &[&str]| {
        let problems = read(keys).map_or_else(|problems| problems.0, |_| Vec::new());
        let found: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let found: Vec<_> = found
            .iter()
            .filter(|found| !found.contains("Cargo feature"))
            .collect();
        assert_eq!(found.len(), expected.len(), "{keys}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            let found = found.replace("streams[0].source.", "");
            assert!(found.starts_with(expected), "{keys}: {found}");
            assert!(!found.contains("hidden-words"), "{found}");
        }
    };
    check("tls = 1", &["tls: found 1, expected true or false"]);
    check(
        "ca_file = \"ca.pem\"",
        &["ca_file: found a file, expected tls = true beside it"],
    );
    check(
        "tls = true, ca_file = \"no.pem\", cert_file = \"ca.pem\"",
        &[
            "key_file: found nothing, expected a file, since there is a cert_file",
            "ca_file: found a file of 12 bytes, expected certificates in PEM, at least one",
        ],
    );
    check(
        "tls = true, ca_file = \"absent.pem\", cert_file = \"ca.pem\", key_file = \"ca.pem\"",
        &["ca_file: found \"", "key_file: found a file of "],
    );
    check(
        "sasl = \"gssapi\", user = \"u\", password_file = \"password\"",
        &["sasl: found \"gssapi\", expected \"plain\" or \"scram-sha-256\" or \"scram-sha-512\""],
    );
    check(
        "sasl = \"plain\", user = \"u\", password_file = \"empty\"",
        &[
            "sasl: found \"plain\", expected tls = true beside it, since it shows the password",
            "password_file: found a file without a password",
        ],
    );
    check(
        "sasl = \"scram-sha-256\"",
        &["user: found nothing", "password_file: found nothing"],
    );
    check(
        "user = \"u\", password_file = \"password\"",
        &[
            "user: found a value, expected sasl = ",
            "password_file: found a value, expected sasl = ",
        ],
    );
    check(
        "sasl = \"scram-sha-256\", user = \"u\", password = \"hidden-words\"",
        &[
            "password_file: found nothing",
            "password: found an unknown key",
        ],
    );
    #[cfg(feature = "kafka")]
    {
        let whole = "tls = true, ca_file = \"ca.pem\", cert_file = \"ca.pem\", key_file = \"key.pem\", \
                     sasl = \"plain\", user = \"u\", password_file = \"password\"";
        let config = read(whole).unwrap();
        let SourceConfig::Kafka(kafka) = &config.streams[0].source else {
            unreachable!("it was written so");
        };
        let (tls, sasl) = (&kafka.security.tls, &kafka.security.sasl);
        let tls = tls.as_ref().unwrap();
        assert_eq!(tls.ca_pem.as_deref(), Some(certificate.as_slice()));
        assert_eq!(tls.identity, Some((certificate.clone(), key.clone())));
        let sasl = sasl.as_ref().unwrap();
        assert_eq!(
            (sasl.user.as_str(), sasl.password.as_str()),
            ("u", "hidden-words")
        );
        assert!(!format!("{config:?}").contains("hidden-words"));
    }
}

#[test]
fn key_files_are_read_from_beside_the_file() {
    let directory = Directory::new("keys");
    directory.write("short", b"short\n");
    let file = directory.write(
        "tidegate.toml",
        b"[access]\njwt_keys = [{ id = \"a\", algorithm = \"HS256\", file = \"short\" }, { id = \"b\", algorithm = \"HS256\", file = \"absent\" }]",
    );
    let problems = Config::load(Some(&file), iter::empty()).unwrap_err().0;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(
        problems[0].to_string(),
        "access.jwt_keys[0].file: found a secret of 5 bytes, expected 32 bytes to 64KiB"
    );
    assert!(
        problems[1].to_string().contains("absent\" (No such file"),
        "{}",
        problems[1]
    );
    let absent = Config::load(
        Some(&directory.0.join("none")),
        [("TIDEGATE_LISTEN_WORKERS".into(), "x".into())].into_iter(),
    );
    let problems = absent.unwrap_err().0;
    assert!(
        problems[0].path.ends_with("none") && problems[1].path == "listen.workers",
        "{problems:?}"
    );
}

/// The keys of the tests, which are beside the other rooms' tests.
fn key_file(name: &str) -> String {
    format!("{}/../tests/keys/{name}.pem", env!("CARGO_MANIFEST_DIR"))
}

fn public_key(algorithm: &str, file: &str) -> Result<Config, Problems> {
    read(
        &format!(
            "access.jwt_keys = [{{ id = \"k\", algorithm = \"{algorithm}\", file = {file:?} }}]"
        ),
        &[],
    )
}

#[test]
fn public_keys_are_read_as_openssl_writes_them() {
    for (algorithm, name, length) in [
        ("RS256", "rsa.public", 270),
        ("ES256", "p256.public", 65),
        ("EdDSA", "ed25519.public", 32),
    ] {
        let config = public_key(algorithm, &key_file(name)).unwrap();
        assert_eq!(config.access.jwt_keys[0].key.len(), length, "{name}");
    }
}

#[test]
fn what_is_no_public_key_of_the_algorithm_is_named() {
    let directory = Directory::new("public-keys");
    let write = |name: &str, text: &str| {
        let path = directory.write(name, text.as_bytes());
        path.display().to_string()
    };
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let key = std::fs::read_to_string(key_file("p256.public")).unwrap();
    let broken = key.replacen("MF", "MG", 1);
    let two = key.repeat(2);
    let private = "a private key, which only the issuer of tokens should have";
    for (algorithm, file, found) in [
        ("RS256", key_file("rsa.private"), private),
        ("ES256", key_file("p256.private"), private),
        ("EdDSA", key_file("ed25519.private"), private),
        ("RS256", write("pkcs1", &pem("RSA PRIVATE KEY")), private),
        ("ES256", write("sec1", &pem("EC PRIVATE KEY")), private),
        (
            "ES256",
            write("locked", &pem("ENCRYPTED PRIVATE KEY")),
            private,
        ),
        (
            "EdDSA",
            key_file("certificate"),
            "a certificate (openssl x509 -pubkey -noout gives its key)",
        ),
        (
            "RS256",
            key_file("rsa-pkcs1.public"),
            "a key in PKCS #1 form (openssl rsa -RSAPublicKey_in converts it)",
        ),
        (
            "RS256",
            key_file("rsa1024.public"),
            "an RSA key of 1024 bits",
        ),
        (
            "RS256",
            key_file("p256.public"),
            "an EC public key on P-256",
        ),
        ("RS256", key_file("ed25519.public"), "an Ed25519 public key"),
        ("ES256", key_file("rsa.public"), "an RSA public key"),
        (
            "ES256",
            key_file("p384.public"),
            "an EC public key on P-384",
        ),
        (
            "ES256",
            key_file("p256-compressed.public"),
            "a compressed point (openssl ec -pubin -conv_form uncompressed converts it)",
        ),
        (
            "EdDSA",
            key_file("p256.public"),
            "an EC public key on P-256",
        ),
        ("EdDSA", key_file("ed448.public"), "an Ed448 public key"),
        (
            "ES256",
            write("broken", &broken),
            "a public key whose DER can't be read",
        ),
        (
            "ES256",
            write("two", &two),
            "a PEM that can't be read (one block, lines of 64 characters)",
        ),
        ("ES256", write("noise", "s3cret"), "no PEM"),
        (
            "ES256",
            write("empty", &pem("CERTIFICATE REQUEST")),
            "the PEM of something that is no key",
        ),
    ] {
        let problems = public_key(algorithm, &file).unwrap_err().to_string();
        let expected = format!("access.jwt_keys[0].file: found {found}, expected the PEM of a");
        assert!(problems.starts_with(&expected), "{file}: {problems}");
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
}

#[test]
fn names_of_the_admin_listener_are_names() {
    let expected = "expected a host's name in lower case, without port";
    check(
        "[admin]\nhosts = [\"tidegate-admin\", \"A\", \"a:9701\", \"[::1]\", \"*\", \"\"]",
        &[
            &format!("admin.hosts[1]: found \"A\", {expected}"),
            &format!("admin.hosts[2]: found \"a:9701\", {expected}"),
            &format!("admin.hosts[3]: found \"[::1]\", {expected}"),
            &format!("admin.hosts[4]: found \"*\", {expected}"),
            &format!("admin.hosts[5]: found \"\", {expected}"),
        ],
    );
}

#[test]
fn a_public_key_is_in_a_file() {
    let expected = "the PEM of an Ed25519 public key (openssl pkey -in PRIVATE -pubout)";
    check(
        "access.jwt_keys = [{ id = \"k\", algorithm = \"EdDSA\", secret = \"s3cret\" }, { id = \"l\", algorithm = \"EdDSA\" }]",
        &[
            &format!("access.jwt_keys[0].secret: found a secret, expected a file with {expected}"),
            &format!("access.jwt_keys[1].file: found nothing, expected {expected}"),
        ],
    );
}

#[test]
fn relations_are_checked_once_their_values_are_good() {
    check(
        "[limits]\nrecord_bytes = \"2MiB\"",
        &[
            "limits.message_bytes: found 1MiB, expected at least limits.record_bytes (2MiB)",
            "session.outbox.bytes: found 1MiB, expected at least limits.record_bytes (2MiB)",
        ],
    );
    check(
        "[session]\nlive_for = \"25s\"\ndrain = { window = \"25s\" }",
        &[
            "session.live_for: found 25s, expected longer than session.heartbeat (25s)",
            "session.drain.deadline: found 25s, expected longer than session.drain.window (25s)",
        ],
    );
    check(
        "[session]\nlive_for = \"1s\"\nheartbeat = \"2h\"",
        &["session.heartbeat: found \"2h\", expected a duration from 100ms to 1h, such as \"5s\""],
    );
    check(
        "[admin]\naddress = \"127.0.0.1:9700\"",
        &[
            "admin.address: found 127.0.0.1:9700, which listen.address is too, expected an address of its own",
        ],
    );
    check(
        "[listen]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"",
        &[],
    );
    check(
        "[limits]\nrecord_bytes = 1024\n[[streams]]\nname = \"a\"\nview_max = { bytes = 1024 }\ntail = { bytes = 1024 }",
        &[],
    );
}

#[test]
fn what_is_unwise_is_warned_of() {
    let warned = |text: &str| read(text, &[]).unwrap().warnings();
    let granted = "[access]\nanonymous = { channels = [\"a/*\"], can = [\"subscribe\"] }\n";
    assert_eq!(warned(granted), [""; 0]);
    for (text, word) in [
        (String::new(), "grants nothing"),
        (
            format!("{granted}[admin]\naddress = \"0.0.0.0:9701\""),
            "admin.token is not set",
        ),
        (
            granted.replace("subscribe", "publish"),
            "lets anybody publish",
        ),
        (
            format!("{granted}[[streams]]\nname = \"a\"\npartitions = 4"),
            "may hold 1280MiB",
        ),
    ] {
        let warnings = warned(&text);
        assert!(
            warnings.len() == 1 && warnings[0].contains(word),
            "{warnings:?}"
        );
    }
    let guarded =
        format!("{granted}[admin]\naddress = \"0.0.0.0:9701\"\ntoken = \"0123456789abcdef\"");
    assert_eq!(warned(&guarded), [""; 0]);
}

/// A stream that a cache may hold.
const CACHED: &str =
    "[[streams]]\nname = \"a\"\nsource = { kind = \"kafka\", brokers = [\"a:1\"] }\n";

#[test]
fn the_cache_is_checked_and_its_password_is_not_shown() {
    let server = "redis://host[:port][/database], or rediss:// for TLS, without user and password, which are cache.user \
                  and cache.password_file";
    check(
        "[cache]\nredis = [\"redis://u:s3cret@a\", \"http://a\", \"redis:///1\", \"rediss://a:6380/1\"]\ncluster = \"no\"\nprefix = \"{a}\"\npassword_file = \"\"",
        &[
            &format!("cache.redis[0]: found a string of 18 bytes, expected {server}"),
            &format!("cache.redis[1]: found a string of 8 bytes, expected {server}"),
            &format!("cache.redis[2]: found a string of 10 bytes, expected {server}"),
            "cache.cluster: found \"no\", expected true or false",
            "cache.password_file: found \"\", expected the path of a file",
            "cache.prefix: found \"{a}\", expected 1 to 128 visible ASCII characters but {, }, *, ? and [",
        ],
    );
    check(
        "[cache]\nredis = [\"redis://a\", \"redis://b\"]\nuser = \"u\"",
        &[
            "cache.redis: found 2 servers, expected one, unless cache.cluster is true or cache.sentinel names what they watch",
            "cache.user: found \"u\" without a password, expected cache.password_file beside it",
        ],
    );
    check(
        "[cache]\nredis = [\"redis://a\"]\ncluster = true\nsentinel = \"main\"",
        &[
            "cache.sentinel: found sentinels of a cluster, expected either cache.cluster or cache.sentinel",
        ],
    );
    let directory = Directory::new("cache");
    directory.write("empty", b" \n");
    let file = directory.write(
        "tidegate.toml",
        b"[cache]\npassword_file = \"empty\"\nca_file = \"absent\"\nuser = \"u\"",
    );
    let problems = Config::load(Some(&file), iter::empty()).unwrap_err().0;
    assert_eq!(
        problems[0].to_string(),
        "cache.password_file: found a file without a password, expected a password as text, white space around it aside"
    );
    assert!(problems[1].to_string().contains("absent\" (No such file"));
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn a_materializer_has_something_to_fold_and_somewhere_to_put_it() {
    let both = "roles = [\"gateway\", \"materializer\"]\n[cache]\nredis = [\"redis://a\"]\n";
    check(
        "roles = []",
        &["roles: found an empty array, expected \"gateway\" or \"materializer\""],
    );
    check(
        "roles = [\"node\"]",
        &["roles[0]: found \"node\", expected \"gateway\" or \"materializer\""],
    );
    check(
        "roles = [\"materializer\"]",
        &[
            "roles: found \"materializer\", expected cache.redis beside it: a materializer folds into the cache",
        ],
    );
    let none = "roles: found \"materializer\", expected a stream for it: one of Kafka or Redis with mode \"view\" and cache \"shared\"";
    check(both, &[none]);
    check(
        "[materializer]\ngroup = \"a b\"\nsession_timeout = \"10ms\"",
        &[
            "materializer.group: found \"a b\", expected 1 to 128 of A-Z, a-z, 0-9, ., _ and -",
            "materializer.session_timeout: found \"10ms\", expected a duration from 1s to 30m, such as \"5s\"",
        ],
    );
    #[cfg(feature = "kafka")]
    {
        check(&format!("{both}{CACHED}cache = \"none\""), &[none]);
        check(&format!("{both}{CACHED}mode = \"events\""), &[none]);
        let config = read(&format!("{both}{CACHED}"), &[]).unwrap();
        assert_eq!(config.roles, [Role::Gateway, Role::Materializer]);
        assert_eq!(config.cached_streams().count(), 1);
    }
    let of = |text: &str| Config::read(text, &Walk::new(iter::empty(), Path::new("")));
    assert_eq!(of(CACHED).cached_streams().count(), 0);
    assert_eq!(of(&format!("{both}{CACHED}")).cached_streams().count(), 1);
}

#[test]
fn a_stream_of_redis_has_servers_and_keeps_what_its_views_need() {
    let of = |source: &str, lines: &str| {
        let source = format!("source = {{ kind = \"redis\", {source} }}");
        format!("[[streams]]\nname = \"a\"\n{source}\n{lines}")
    };
    let check = |source: &str, lines: &str, expected: &[&str]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|line| format!("streams[0].{line}"))
            .collect();
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        super::check(&of(source, lines), &expected);
    };
    let servers = "redis = [\"redis://a\"]";
    check(
        "",
        "",
        &["source.redis: found nothing, expected one server, or those of a cluster, or sentinels"],
    );
    check(
        "redis = [\"redis://a\", \"redis://b\"]",
        "",
        &[
            "source.redis: found 2 servers, expected one, unless streams[0].source.cluster is true or streams[0].source.sentinel names what they watch",
        ],
    );
    check(
        "redis = [\"redis://a\"], cluster = true, sentinel = \"b\"",
        "",
        &[
            "source.sentinel: found sentinels of a cluster, expected either streams[0].source.cluster or streams[0].source.sentinel",
        ],
    );
    let bounds = format!("{servers}, retention = {{ records = 10 }}");
    check(
        &bounds,
        "",
        &[
            "source.retention: found bounds, expected nothing, since mode is \"view\" and a row whose record was trimmed would be missing; or history = \"incomplete\" beside it",
        ],
    );
    for (source, lines) in [
        (bounds.clone(), "mode = \"events\""),
        (format!("{bounds}, history = \"incomplete\""), ""),
        (format!("{servers}, user = \"u\""), "mode = \"events\""),
    ] {
        let read = read(&of(&source, lines), &[]).map_err(|problems| problems.to_string());
        assert_eq!(read.is_err(), source.contains("user"), "{source}");
    }
    check(
        servers,
        "poison = \"halt\"",
        &[
            "poison: found another rule than \"skip\", expected none: this version puts aside, and stops at, records of Kafka only",
        ],
    );
    check(
        servers,
        "row_ttl = \"1h\"",
        &[
            "row_ttl: found a duration, expected none: of a stream of Redis, rows are deleted by whoever writes them",
        ],
    );
    let both = "roles = [\"gateway\", \"materializer\"]\n[cache]\nredis = [\"redis://a\"]\n";
    let config = read(&format!("{both}{}", of(servers, "")), &[]).unwrap();
    assert_eq!(config.cached_streams().count(), 1);
}

/// A stream of the embedded engine, with these lines.
fn own(lines: &str) -> String {
    format!("[[streams]]\nname = \"a\"\n{lines}")
}

#[test]
fn rules_for_what_means_nothing_are_of_streams_that_others_write() {
    let none = "none: what publishing takes means something, so this is for streams of Kafka";
    check(
        &own("poison = \"drop\"\ndead_letter = \"a b\""),
        &[
            "streams[0].poison: found \"drop\", expected \"skip\" or \"quarantine\" or \"halt\"",
            "streams[0].dead_letter: found \"a b\", expected 1 to 249 of A-Z, a-z, 0-9, ., _ and -",
        ],
    );
    check(
        &own("poison = \"halt\"\ndead_letter = \"b\""),
        &[
            &format!("streams[0].poison: found another rule than \"skip\", expected {none}"),
            &format!("streams[0].dead_letter: found a topic, expected {none}"),
        ],
    );
    #[cfg(feature = "kafka")]
    {
        check(
            &format!("{CACHED}poison = \"quarantine\""),
            &[
                "streams[0].dead_letter: found nothing, expected a topic, since poison is \"quarantine\"",
            ],
        );
        check(
            &format!("{CACHED}dead_letter = \"a\""),
            &["streams[0].dead_letter: found \"a\", expected another topic than the stream's own"],
        );
        let rule = "poison = \"quarantine\"\ndead_letter = \"b\"";
        let config = read(&format!("{CACHED}{rule}"), &[]).unwrap();
        let rule = crate::model::PoisonRule::Quarantine;
        assert_eq!(config.streams[0].poison, rule);
        assert_eq!(config.streams[0].dead_letter.as_deref(), Some("b"));
    }
}

#[test]
fn only_what_can_be_published_to_has_a_canary() {
    let foreign = "streams[0].canary: found a duration, expected none: this stream can't be published to from here, since others place its rows, or channel and row are not those of the defaults";
    check(
        &own("canary = \"1ms\""),
        &["streams[0].canary: found \"1ms\", expected a duration from 100ms to 1h, such as \"5s\""],
    );
    check(&own("canary = \"5s\"\nrow = \"none\""), &[foreign]);
    assert!(read(&own("canary = \"5s\"\nplacement = \"spread\""), &[]).is_ok());
    #[cfg(feature = "kafka")]
    {
        let spread = format!("{CACHED}canary = \"5s\"\nplacement = \"spread\"");
        check(&spread, &[foreign]);
        assert!(read(&format!("{CACHED}canary = \"5s\""), &[]).is_ok());
    }
}
