//! What an operator is told of a reload; who does it is behind [`Reload`].

use std::{fmt, sync::Arc};

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use serde_json::json;

use super::{Admin, json as respond, problem, problem_with};

/// What reloads a node.
pub trait Reload: Send + Sync {
    /// Reads the configuration again and applies it, all or nothing.
    fn reload(self: Arc<Self>) -> BoxFuture<'static, Result<Reloaded, NotReloaded>>;
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What has changed, as paths of keys.
    pub changed: Vec<String>,
    /// Ids of keys that no longer grant what they granted.
    pub revoked: Vec<String>,
    /// Sessions that were closed for that.
    pub closed: usize,
    /// Subscriptions that ended since their stream is gone.
    pub ended: usize,
}

/// Why nothing was reloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReloaded {
    /// The node was started without anything that could be read again.
    Unavailable,
    /// What is wrong with the configuration, a line each.
    Mistakes(Vec<String>),
    /// What differs and can't change while the node runs, as paths of keys.
    Fixed(Vec<String>),
    /// The node is leaving.
    Leaving,
}

impl fmt::Display for NotReloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable => {
                f.write_str("this node was started without a configuration to read again")
            }
            Self::Mistakes(mistakes) => {
                write!(f, "the configuration is wrong: {}", mistakes.join("; "))
            }
            Self::Leaving => f.write_str("this node is leaving"),
            Self::Fixed(paths) => write!(
                f,
                "these take effect only after a restart: {}",
                paths.join(", ")
            ),
        }
    }
}

/// Reads the configuration again.
pub(super) async fn reload(State(admin): State<Arc<Admin>>) -> Response {
    match admin.reload.clone().reload().await {
        Ok(done) => respond(json!({
            "changed": done.changed,
            "revoked_keys": done.revoked,
            "closed": done.closed,
            "ended_subscriptions": done.ended,
        })),
        Err(why) => refused(&why),
    }
}

fn refused(why: &NotReloaded) -> Response {
    let detail = why.to_string();
    match why {
        NotReloaded::Unavailable => {
            problem(StatusCode::NOT_IMPLEMENTED, "not_implemented", &detail)
        }
        NotReloaded::Leaving => problem(StatusCode::SERVICE_UNAVAILABLE, "draining", &detail),
        NotReloaded::Mistakes(mistakes) => {
            let more = json!({ "mistakes": mistakes });
            problem_with(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad_config",
                &detail,
                more,
            )
        }
        NotReloaded::Fixed(paths) => {
            let more = json!({ "paths": paths });
            problem_with(StatusCode::CONFLICT, "restart_needed", &detail, more)
        }
    }
    .into_response()
}
