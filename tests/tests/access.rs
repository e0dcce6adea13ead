//! Who may do what over HTTP: tokens, keys, cookies, origins, limits at the door.

use std::{net::SocketAddr, time::SystemTime};

use serde_json::json;
use tidegate::auth::{self, GrantSpec, JwtKey, Permission, TokenSpec};
use tidegate_tests::{
    gateway::{API_KEY, Node, Setup, jwt},
    sse::Events,
    wire::{Answer, Wire, ask, get, request_bytes, within},
};

const VIEW: &str = "/v1/view/s/a";
const SSE: &str = "/v1/sse?channel=s/a";
const ORIGIN: &str = "https://board.example";
const SECRET: &str = "a secret of the tests, long enough for HS256";

fn start(setup: &Setup) -> Node {
    setup.start().expect("a gateway")
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

fn good() -> String {
    jwt(Some("ada"), &["s/*"], &[Permission::Subscribe], 60).expect("a token")
}

/// A token of another key, or of another time.
fn signed(id: &str, secret: &str, ttl_s: u64, at_s: u64) -> String {
    let key = JwtKey::hs256(id, secret.as_bytes()).expect("a key");
    let grant = GrantSpec {
        channels: vec!["s/*".into()],
        can: vec![Permission::Subscribe],
    };
    let spec = TokenSpec {
        subject: None,
        grant,
    };
    auth::issue(&key, &spec, ttl_s, at_s).expect("a token")
}

/// Base64url without padding.
fn base64url(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits = three
            .iter()
            .fold(0u32, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - three.len()));
        for digit in 0..=three.len() {
            out.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    out
}

/// What does not hold, and what is said of it.
fn forgeries() -> Vec<(&'static str, String, &'static str)> {
    let good = good();
    let parts: Vec<&str> = good.split('.').collect();
    let claims =
        json!({"channels":["s/*"],"can":["subscribe","publish"],"exp":now_s() + 60}).to_string();
    let none = base64url(r#"{"alg":"none","typ":"JWT","kid":"tests"}"#);
    let mut flipped = good.clone().into_bytes();
    let at = good.len() - 10;
    flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
    vec![
        (
            "expired",
            signed("tests", SECRET, 60, now_s() - 120),
            "token_expired",
        ),
        (
            "of another secret",
            signed("tests", &"z".repeat(40), 60, now_s()),
            "unauthorized",
        ),
        (
            "of another kid",
            signed("others", SECRET, 60, now_s()),
            "unauthorized",
        ),
        (
            "alg none",
            format!("{none}.{}.", base64url(&claims)),
            "unauthorized",
        ),
        (
            "alg none, signed",
            format!("{none}.{}.{}", base64url(&claims), parts[2]),
            "unauthorized",
        ),
        (
            "other claims",
            format!("{}.{}.{}", parts[0], base64url(&claims), parts[2]),
            "unauthorized",
        ),
        (
            "a flipped digit",
            String::from_utf8(flipped).expect("ASCII"),
            "unauthorized",
        ),
        (
            "without signature",
            format!("{}.{}.", parts[0], parts[1]),
            "unauthorized",
        ),
        (
            "two parts",
            format!("{}.{}", parts[0], parts[1]),
            "unauthorized",
        ),
        ("garbage", "garbage".into(), "unauthorized"),
        ("empty", String::new(), "unauthorized"),
        ("dots", "...".into(), "unauthorized"),
        ("very long", "x".repeat(9000), "unauthorized"),
    ]
}

async fn with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut wire = Wire::open(address).await;
    wire.request("GET", path, headers, b"").await;
    let head = wire.head().await;
    // An event stream has no end: its head says enough.
    let body = if head.get("content-type") == Some("text/event-stream; charset=utf-8") {
        Vec::new()
    } else {
        wire.body(&head).await
    };
    Answer { head, body }
}

#[tokio::test]
async fn a_good_token_opens_views_and_event_streams() {
    let node = start(&Setup::new().view("s"));
    let bearer = format!("Bearer {}", good());
    for scheme in [bearer.clone(), bearer.replace("Bearer", "bEaReR")] {
        for path in [VIEW, SSE] {
            let answer = with(node.gateway.address(), path, &[("authorization", &scheme)]).await;
            assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        }
    }
    let other = with(
        node.gateway.address(),
        "/v1/view/t/a",
        &[("authorization", &bearer)],
    )
    .await;
    other.problem(403, "forbidden");
}

#[tokio::test]
async fn a_token_that_does_not_hold_opens_nothing_not_even_what_is_free() {
    let node = start(&Setup::new().open().view("s"));
    for (what, token, code) in forgeries() {
        let bearer = format!("Bearer {token}");
        for path in [VIEW, SSE] {
            let answer = with(node.gateway.address(), path, &[("authorization", &bearer)]).await;
            assert_eq!(answer.status(), 401, "{what} at {path}: {}", answer.text());
            answer.problem(401, code);
            assert_eq!(answer.head.get("www-authenticate"), Some("Bearer"));
            if !token.is_empty() {
                assert!(
                    !answer.text().contains(&token),
                    "a refusal never repeats the token"
                );
            }
        }
        let publish = ask(
            node.gateway.address(),
            "POST",
            "/v1/publish/s",
            &[("authorization", &bearer)],
            "{}",
        )
        .await;
        publish.problem(401, code);
    }
}

#[tokio::test]
async fn an_api_key_is_a_token_too() {
    let node = start(&Setup::new().view("s"));
    let bearer = format!("Bearer {API_KEY}");
    for path in [VIEW, SSE] {
        let answer = with(node.gateway.address(), path, &[("authorization", &bearer)]).await;
        assert_eq!(answer.status(), 200);
    }
    let almost = format!("Bearer {API_KEY}x");
    with(node.gateway.address(), VIEW, &[("authorization", &almost)])
        .await
        .problem(401, "unauthorized");
}

#[tokio::test]
async fn a_cookie_is_a_token_from_allowed_origins_only() {
    let setup = Setup::new().view("s").access("cookie = \"seat\"");
    let node = start(&setup.listen(&format!("origins = [\"{ORIGIN}\"]")));
    let at = node.gateway.address();
    let cookie = format!("theme=dark; seat={}; lang=en", good());
    let cookie = ("cookie", cookie.as_str());
    assert_eq!(
        with(at, SSE, &[cookie, ("origin", ORIGIN)]).await.status(),
        200
    );
    assert_eq!(
        with(at, SSE, &[cookie]).await.status(),
        200,
        "same origin: browsers say none"
    );
    let own = [
        cookie,
        ("host", "push.example"),
        ("origin", "https://push.example"),
    ];
    assert_eq!(with(at, SSE, &own).await.status(), 200);
    let foreign = with(at, SSE, &[cookie, ("origin", "https://evil.example")]).await;
    foreign.problem(403, "forbidden");
    with(at, SSE, &[cookie, ("origin", "null")])
        .await
        .problem(403, "forbidden");
    with(at, VIEW, &[cookie, ("origin", "https://evil.example")])
        .await
        .problem(401, "unauthorized");
    with(at, SSE, &[("cookie", "other=1")])
        .await
        .problem(401, "unauthorized");
    for (what, token, code) in forgeries() {
        let cookie = format!("seat={token}");
        let answer = with(at, SSE, &[("cookie", &cookie), ("origin", ORIGIN)]).await;
        assert_eq!(answer.status(), 401, "{what}");
        answer.problem(401, code);
    }
    let record = "{\"channel\":\"a\",\"data\":1}";
    let key = format!("seat={API_KEY}");
    let publish = ask(
        at,
        "POST",
        "/v1/publish/s",
        &[("cookie", &key), ("origin", ORIGIN)],
        record,
    )
    .await;
    publish.problem(401, "unauthorized");
}

#[tokio::test]
async fn a_cookie_is_nothing_where_none_is_configured() {
    let node = start(&Setup::new().view("s"));
    let cookie = format!("tidegate={}", good());
    with(node.gateway.address(), SSE, &[("cookie", &cookie)])
        .await
        .problem(401, "unauthorized");
}

#[tokio::test]
async fn without_a_token_there_is_only_what_the_configuration_names() {
    let free = "anonymous = { channels = [\"s/open-*\"], can = [\"subscribe\"] }";
    let node = start(&Setup::new().view("s").view("t").access(free));
    let at = node.gateway.address();
    for (path, status) in [
        ("/v1/view/s/open-1", 200),
        ("/v1/sse?channel=s/open-1", 200),
        ("/v1/view/s/closed", 403),
        ("/v1/sse?channel=s/closed", 403),
        ("/v1/sse?channel=s/open-1&channel=s/closed", 403),
        ("/v1/view/t/open-1", 403),
        // Whether a stream exists is nobody's business who may not read it.
        ("/v1/view/gone/open-1", 403),
        ("/v1/sse?channel=gone/open-1", 403),
    ] {
        let answer = with(at, path, &[]).await;
        assert_eq!(answer.status(), status, "{path}: {}", answer.text());
        if status == 403 {
            answer.problem(403, "forbidden");
        }
    }
}

#[tokio::test]
async fn with_no_keys_at_all_nothing_is_granted() {
    let empty = Setup::new()
        .view("s")
        .env("TIDEGATE_ACCESS_API_KEYS", "[]")
        .env("TIDEGATE_ACCESS_JWT_KEYS", "[]");
    let node = start(&empty);
    let at = node.gateway.address();
    let (bearer, key) = (format!("Bearer {}", good()), format!("Bearer {API_KEY}"));
    for headers in [
        &[][..],
        &[("authorization", bearer.as_str())],
        &[("authorization", key.as_str())],
    ] {
        for path in [VIEW, SSE] {
            with(at, path, headers).await.problem(401, "unauthorized");
        }
        let publish = ask(
            at,
            "POST",
            "/v1/publish/s",
            headers,
            "{\"channel\":\"a\",\"data\":1}",
        )
        .await;
        publish.problem(401, "unauthorized");
    }
}

#[tokio::test]
async fn a_subject_reads_its_own_channels_and_no_others() {
    let node = start(&Setup::new().view("s"));
    let token = jwt(Some("ada"), &["s/{sub}/*"], &[Permission::Subscribe], 60).unwrap();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(
        with(node.gateway.address(), "/v1/view/s/ada/1", &headers)
            .await
            .status(),
        200
    );
    with(node.gateway.address(), "/v1/view/s/eve/1", &headers)
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn pages_of_allowed_origins_may_read_answers_and_others_not() {
    let node = start(
        &Setup::new()
            .open()
            .view("s")
            .listen(&format!("origins = [\"{ORIGIN}\"]")),
    );
    let at = node.gateway.address();
    for path in [VIEW, SSE, "/v1/view/gone/x"] {
        let answer = with(at, path, &[("origin", ORIGIN)]).await;
        assert_eq!(
            answer.head.get("access-control-allow-origin"),
            Some(ORIGIN),
            "{path}"
        );
        assert_eq!(answer.head.get("access-control-allow-credentials"), None);
        let exposed = answer
            .head
            .get("access-control-expose-headers")
            .unwrap_or_default();
        assert!(
            exposed.contains("etag") && exposed.contains("tidegate-freshness"),
            "{exposed}"
        );
        assert!(
            answer
                .head
                .get("vary")
                .is_some_and(|vary| vary.contains("origin"))
        );
    }
    let foreign = with(at, VIEW, &[("origin", "https://evil.example")]).await;
    assert_eq!(
        (
            foreign.status(),
            foreign.head.get("access-control-allow-origin")
        ),
        (200, None)
    );
    with(at, SSE, &[("origin", "https://evil.example")])
        .await
        .problem(403, "forbidden");
    let own = [("host", "push.example"), ("origin", "http://push.example")];
    assert_eq!(with(at, SSE, &own).await.status(), 200);
}

#[tokio::test]
async fn preflights_allow_what_pages_need() {
    let setup = Setup::new().view("s").access("cookie = \"seat\"");
    let node = start(&setup.listen(&format!("origins = [\"{ORIGIN}\"]")));
    let at = node.gateway.address();
    let preflight = async |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization,content-type,idempotency-key",
            ),
        ];
        ask(at, "OPTIONS", "/v1/publish/s", &headers, "").await
    };
    let allowed = preflight(ORIGIN).await;
    assert_eq!(allowed.status(), 200);
    assert_eq!(
        allowed.head.get("access-control-allow-origin"),
        Some(ORIGIN)
    );
    assert_eq!(
        allowed.head.get("access-control-allow-credentials"),
        Some("true")
    );
    assert!(
        allowed
            .head
            .get("access-control-allow-methods")
            .unwrap()
            .contains("POST")
    );
    let headers = allowed.head.get("access-control-allow-headers").unwrap();
    for needed in [
        "authorization",
        "content-type",
        "idempotency-key",
        "if-none-match",
        "last-event-id",
    ] {
        assert!(headers.contains(needed), "{needed} in {headers}");
    }
    let foreign = preflight("https://evil.example").await;
    assert_eq!(foreign.head.get("access-control-allow-origin"), None);
}

#[tokio::test]
async fn a_star_lets_every_page_in() {
    let node = start(&Setup::new().open().view("s").listen("origins = [\"*\"]"));
    let answer = with(
        node.gateway.address(),
        SSE,
        &[("origin", "https://any.example")],
    )
    .await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.get("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn a_websocket_from_a_foreign_page_is_refused() {
    let node = start(
        &Setup::new()
            .open()
            .view("s")
            .listen(&format!("origins = [\"{ORIGIN}\"]")),
    );
    let at = node.gateway.address();
    let upgrade = async |origin: &str, host: &str| {
        let mut wire = Wire::open(at).await;
        let headers = [
            ("host", host),
            ("origin", origin),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        wire.request("GET", "/v1/ws", &headers, b"").await;
        let head = wire.head().await;
        let body = if head.status == 101 {
            Vec::new()
        } else {
            wire.body(&head).await
        };
        Answer { head, body }
    };
    let allowed = upgrade(ORIGIN, "push.example").await;
    assert_eq!(allowed.status(), 101);
    assert_eq!(
        allowed.head.get("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    assert_eq!(
        upgrade("https://push.example", "push.example")
            .await
            .status(),
        101
    );
    upgrade("https://evil.example", "push.example")
        .await
        .problem(403, "forbidden");
    upgrade("null", "push.example")
        .await
        .problem(403, "forbidden");
    upgrade("https://push.example.evil.example", "push.example")
        .await
        .problem(403, "forbidden");
    upgrade("https://push.example:8443", "push.example")
        .await
        .problem(403, "forbidden");
}

#[tokio::test]
async fn one_address_may_only_connect_so_often() {
    let node = start(
        &Setup::new()
            .open()
            .view("s")
            .limits("connects_per_second_per_address = 3"),
    );
    let at = node.gateway.address();
    let mut wires = Vec::new();
    for _ in 0..20 {
        wires.push(Wire::open(at).await);
    }
    let (mut answered, mut refused) = (0, 0);
    for wire in &mut wires {
        let request = request_bytes("GET", VIEW, &[("connection", "close")], b"");
        wire.send(&request).await;
        let answer = wire.answer().await;
        if answer.status() == 200 {
            answered += 1;
            continue;
        }
        answer.problem(429, "rate_limited");
        let after = answer.head.get("retry-after").expect("when to come back");
        assert!(
            (1..=3).contains(&after.parse().expect("seconds")),
            "{after}"
        );
        refused += 1;
    }
    assert!((3..=6).contains(&answered), "{answered} answered");
    let counted = node.gateway.app().counts.turned.address_rate.get();
    assert_eq!(counted, refused);
    let again = async {
        loop {
            let mut wire = Wire::open(at).await;
            wire.send(&request_bytes("GET", VIEW, &[("connection", "close")], b""))
                .await;
            if wire.answer().await.status() == 200 {
                return;
            }
        }
    };
    within("the rate to be forgotten", again).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431_and_others_go_on() {
    let node = start(
        &Setup::new()
            .open()
            .view("s")
            .limits("header_bytes = \"16KiB\""),
    );
    let at = node.gateway.address();
    let fits = "x".repeat(12 * 1024);
    assert_eq!(with(at, VIEW, &[("x-fill", &fits)]).await.status(), 200);
    for size in [20 * 1024, 1 << 20] {
        let fill = "x".repeat(size);
        assert_eq!(with(at, VIEW, &[("x-fill", &fill)]).await.status(), 431);
        let path = format!("{VIEW}?{fill}");
        let status = with(at, &path, &[]).await.status();
        assert!(matches!(status, 414 | 431), "{status}");
    }
    assert_eq!(get(at, VIEW).await.status(), 200);
}

#[tokio::test]
async fn what_is_no_http_is_400_or_closed() {
    let node = start(&Setup::new().open().view("s"));
    let at = node.gateway.address();
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
    ] {
        let mut wire = Wire::open(at).await;
        wire.send([nonsense, b"\r\n\r\n"].concat()).await;
        let answer = String::from_utf8_lossy(&wire.rest().await).into_owned();
        assert!(
            answer.is_empty()
                || answer.starts_with("HTTP/1.1 400")
                || answer.starts_with("HTTP/1.1 505"),
            "{answer}"
        );
    }
    assert_eq!(get(at, VIEW).await.status(), 200);
}

#[tokio::test]
async fn the_board_comes_with_its_kinds_and_its_policy() {
    let node = start(&Setup::new());
    let at = node.gateway.address();
    for (path, kind, word) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/board.css", "text/css; charset=utf-8", "{"),
        ("/board.js", "text/javascript; charset=utf-8", "import"),
        ("/tide.js", "text/javascript; charset=utf-8", "export"),
        ("/state.js", "text/javascript; charset=utf-8", "export"),
        ("/flap.js", "text/javascript; charset=utf-8", "export"),
        ("/row.js", "text/javascript; charset=utf-8", "export"),
        ("/words.js", "text/javascript; charset=utf-8", "export"),
        ("/places.js", "text/javascript; charset=utf-8", "export"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ] {
        let answer = get(at, path).await;
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.head.get("content-type"), Some(kind), "{path}");
        assert_eq!(answer.head.get("x-content-type-options"), Some("nosniff"));
        let policy = answer.head.get("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'self'") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("base-uri 'none'"));
        assert!(answer.text().to_lowercase().contains(word), "{path}");
    }
    // What the page names is served, and nothing inline would be forbidden by its own policy.
    let page = get(at, "/").await.text();
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick="));
    for (quote, _) in page.match_indices("=\"") {
        let value = page[quote + 2..].split('"').next().unwrap_or_default();
        if value.ends_with(".js") || value.ends_with(".css") || value.ends_with(".svg") {
            let path = format!(
                "/{}",
                value.trim_start_matches("./").trim_start_matches('/')
            );
            assert_eq!(get(at, &path).await.status(), 200, "{path}");
        }
    }
    get(at, "/nowhere").await.problem(404, "not_found");
    get(at, "/../Cargo.toml").await.problem(404, "not_found");
}

#[tokio::test]
async fn a_token_that_expires_ends_the_event_stream_with_the_reason() {
    let node = start(&Setup::new().view("s"));
    // Issued so that it has a second left, with the clocks' leeway.
    let token = signed("tests", SECRET, 60, now_s() - 60 - auth::LEEWAY_S + 2);
    let bearer = format!("Bearer {token}");
    let query = SSE.split_once('?').expect("a query").1;
    let mut events =
        Events::open(node.gateway.address(), query, &[("authorization", &bearer)]).await;
    events.event("snapshot").await;
    let bye = events.event("bye").await.json();
    assert_eq!(bye["code"], "token_expired");
    assert_eq!(events.next().await, None);
    assert_eq!(events.wire.rest().await, b"");
}

/// Tokens that `openssl` signed, each checked by the public key in the file that the configuration names.
#[tokio::test]
async fn tokens_of_public_keys_open_what_they_grant() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/keys");
    let key = |id: &str, algorithm: &str| {
        format!(
            "{{ id = \"{id}\", algorithm = \"{algorithm}\", file = \"{keys}/{id}.public.pem\" }}"
        )
    };
    let all = [("rsa", "RS256"), ("p256", "ES256"), ("ed25519", "EdDSA")];
    let list: Vec<_> = all
        .iter()
        .map(|(id, algorithm)| key(id, algorithm))
        .collect();
    let setup = Setup::new().without_jwt_keys().view("s");
    let node = start(&setup.access(&format!("jwt_keys = [{}]", list.join(", "))));
    let address = node.gateway.address();
    for (id, _) in all {
        let token = std::fs::read_to_string(format!("{keys}/{id}.token")).expect("a token");
        let bearer = format!("Bearer {}", token.trim());
        let answer = with(address, VIEW, &[("authorization", &bearer)]).await;
        assert_eq!(answer.status(), 200, "{id}: {}", answer.text());
        let pem = std::fs::read(format!("{keys}/{id}.public.pem")).expect("a key");
        let secret = String::from_utf8(pem).expect("text");
        let forged = format!("Bearer {}", signed(id, &secret, 60, now_s()));
        let answer = with(address, VIEW, &[("authorization", &forged)]).await;
        answer.problem(401, "unauthorized");
    }
    node.drain().await.expect("a drain");
}
