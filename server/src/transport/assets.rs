//! The departures board, embedded in the binary: the page at `/` and what it loads.

use std::sync::Arc;

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};

use super::App;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
/// Everything comes from the gateway itself, nothing inline.
const POLICY: &str = "default-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'";

macro_rules! board {
    ($file:literal) => {
        include_str!(concat!("../../../client-js/board/", $file))
    };
}

const ASSETS: [(&str, &str, &str); 9] = [
    ("/", HTML, board!("index.html")),
    ("/board.css", CSS, board!("board.css")),
    ("/board.js", JS, board!("board.js")),
    ("/tide.js", JS, board!("tide.js")),
    ("/state.js", JS, board!("state.js")),
    ("/flap.js", JS, board!("flap.js")),
    ("/row.js", JS, board!("row.js")),
    ("/words.js", JS, board!("words.js")),
    ("/places.js", JS, board!("places.js")),
];

/// The board's routes.
pub(super) fn router() -> Router<Arc<App>> {
    let icon = ("/icon.svg", SVG, board!("icon.svg"));
    ASSETS
        .into_iter()
        .chain([icon])
        .fold(Router::new(), |router, (path, kind, text)| {
            router.route(path, get(move || async move { asset(kind, text) }))
        })
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let head = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (head, text).into_response()
}
