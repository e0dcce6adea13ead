//! Who may come in, as of now: what a reload replaces as a whole.
//!
//! Owns: the authority, and what is asked at the door. Keeps: a key that was taken away is remembered, so that a handshake
//! that was under way meanwhile can't bring a session in that nobody closes.

use std::{collections::HashSet, sync::Arc};

use arc_swap::{ArcSwap, Guard};

use super::admission::Admission;
use crate::auth::Authority;

/// Reloads whose revoked keys are remembered; a handshake that is older than all of them is not trusted.
const REMEMBERED: usize = 32;

/// Ids of keys that no longer grant what they granted.
pub type Revoked = Arc<HashSet<Arc<str>>>;

/// Who may come in.
pub struct Door {
    /// Whose tokens hold.
    pub authority: Authority,
    /// Origins whose pages may connect beside our own; `*` for all.
    pub origins: Vec<String>,
    /// The cookie that carries a token for event streams.
    pub cookie: Option<String>,
    /// Connections that the node takes.
    pub connections_max: usize,
    /// Who may connect at all.
    pub admission: Admission,
}

impl Door {
    /// Whether the configuration names this origin.
    #[must_use]
    pub fn names_origin(&self, origin: &str) -> bool {
        self.names_all() || self.origins.iter().any(|allowed| allowed == origin)
    }

    /// Whether every page may connect.
    #[must_use]
    pub fn names_all(&self) -> bool {
        self.origins.iter().any(|allowed| allowed == "*")
    }
}

/// The door that holds, by the number of the reload that made it.
pub struct LiveDoor {
    door: ArcSwap<Door>,
    /// What each reload revoked, oldest first, and how many there were before those.
    history: ArcSwap<(u64, Vec<Revoked>)>,
}

impl LiveDoor {
    /// The first one.
    #[must_use]
    pub fn new(door: Door) -> Self {
        Self {
            door: ArcSwap::from_pointee(door),
            history: ArcSwap::from_pointee((0, Vec::new())),
        }
    }

    /// The one that holds.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Door>> {
        self.door.load()
    }

    /// Takes another one in its place, which no longer vouches for these keys' sessions. Reloads come one after the other.
    pub fn replace(&self, door: Door, revoked: Revoked) {
        self.door.store(Arc::new(door));
        let (before, mut history) = (**self.history.load()).clone();
        history.push(revoked);
        let forgotten = history.len().saturating_sub(REMEMBERED);
        history.drain(..forgotten);
        self.history
            .store(Arc::new((before + forgotten as u64, history)));
    }

    /// How many reloads there were.
    #[must_use]
    pub fn number(&self) -> u64 {
        let history = self.history.load();
        history.0 + history.1.len() as u64
    }

    /// Whether a key was revoked since there were so many reloads.
    #[must_use]
    pub fn revoked_since(&self, number: u64, key: &str) -> bool {
        let history = self.history.load();
        let (before, revoked) = &**history;
        let Some(known) = number.checked_sub(*before) else {
            return true;
        };
        let later = usize::try_from(known).unwrap_or(usize::MAX);
        revoked.iter().skip(later).any(|keys| keys.contains(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::admission::AdmissionMax;

    fn door() -> Door {
        Door {
            authority: Authority::default(),
            origins: vec!["https://a.example".to_owned()],
            cookie: None,
            connections_max: 1,
            admission: Admission::new(AdmissionMax::default()),
        }
    }

    #[test]
    fn what_was_revoked_is_remembered_and_what_is_forgotten_is_not_trusted() {
        let live = LiveDoor::new(door());
        let revoke = |key: &str| live.replace(door(), Arc::new(HashSet::from([Arc::from(key)])));
        assert!(!live.revoked_since(live.number(), "a"));
        revoke("a");
        revoke("b");
        assert!(live.revoked_since(0, "a") && live.revoked_since(0, "b"));
        assert!(!live.revoked_since(1, "a") && live.revoked_since(1, "b"));
        assert!(!live.revoked_since(2, "b") && !live.revoked_since(0, "c"));
        for _ in 0..REMEMBERED {
            revoke("c");
        }
        assert_eq!(live.number(), 2 + REMEMBERED as u64);
        assert!(live.revoked_since(1, "never revoked"));
        assert!(!live.revoked_since(2, "never revoked") && live.revoked_since(2, "c"));
    }

    #[test]
    fn an_origin_is_named_as_it_is_written() {
        let mut door = door();
        assert!(door.names_origin("https://a.example"));
        assert!(!door.names_origin("https://a.example.elsewhere"));
        door.origins = vec!["*".to_owned()];
        assert!(door.names_origin("https://elsewhere.example"));
    }
}
