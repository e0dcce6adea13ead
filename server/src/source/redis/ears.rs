//! Who waits for more, and what wakes them.
//!
//! One request blocks at the server for all partitions that wait there (`XREAD BLOCK`), on a connection of its own. Who begins to wait
//! meanwhile has it ended (`CLIENT UNBLOCK`, on another one) and sent anew with him in it. What it brings only wakes: the reader
//! fetches, so a reader that is slow, or fails, is not in it and holds nobody up. A cluster takes no request for keys of several
//! slots, so there each partition has ears of its own.
//!
//! Keeps: at most one request and one entry of each partition at a time; a server that can't be listened to is asked at growing
//! intervals, by the readers' own fetches.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection, cmd};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{LogError, RedisServer};
use crate::{
    cache::redis::{Link, RedisError},
    model::Offset,
    source::backoff::Backoff,
};

/// How long the server holds a request that waits for entries.
const BLOCK: Duration = Duration::from_secs(5);
/// The same where nobody may end it: so late is heard who begins to wait.
const SHORT_BLOCK: Duration = Duration::from_millis(50);
/// So long those who were woken have to wait anew, before the others are listened for without them.
const BREATH: Duration = Duration::from_millis(1);
/// Between two tries to end a request.
const AGAIN: Duration = Duration::from_millis(2);
/// Connections are kept so long after the last who waited.
const IDLE: Duration = Duration::from_secs(30);

/// Those who wait at a server.
#[derive(Debug, Default)]
pub struct Ears {
    waits: Mutex<Waits>,
    /// Somebody waits who did not before.
    more: Notify,
}

#[derive(Debug, Default)]
struct Waits {
    next: u64,
    of: BTreeMap<u64, Wait>,
}

#[derive(Debug)]
struct Wait {
    key: String,
    /// Behind which id there should be something; none while nobody waits for it.
    behind: Option<String>,
    bell: Arc<Notify>,
}

/// What one reader waits by.
#[derive(Debug)]
pub(super) struct Ear {
    ears: Arc<Ears>,
    number: u64,
    bell: Arc<Notify>,
    asked: Option<Offset>,
}

/// One request: the keys, and behind which ids.
type Request = Vec<(String, String)>;

impl Ears {
    /// For nobody yet. They hear once [`Ears::run`] runs.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An ear for a key.
    pub(super) fn open(self: &Arc<Self>, key: &str) -> Ear {
        let bell = Arc::new(Notify::new());
        let mut waits = self.waits();
        waits.next += 1;
        let number = waits.next;
        let wait = Wait {
            key: key.to_owned(),
            behind: None,
            bell: bell.clone(),
        };
        waits.of.insert(number, wait);
        Ear {
            ears: self.clone(),
            number,
            bell,
            asked: None,
        }
    }

    /// What is waited for now. Of two readers of one key the one that has read less.
    fn request(&self) -> Request {
        let waits = self.waits();
        let waiting = waits
            .of
            .values()
            .filter_map(|wait| Some((wait, wait.behind.as_ref()?)));
        let mut request: BTreeMap<&String, &String> = BTreeMap::new();
        for (wait, behind) in waiting {
            let least = request.entry(&wait.key).or_insert(behind);
            if super::offset_of(behind.as_bytes()) < super::offset_of(least.as_bytes()) {
                *least = behind;
            }
        }
        request
            .into_iter()
            .map(|(key, behind)| (key.clone(), behind.clone()))
            .collect()
    }

    /// Wakes those who wait for these keys.
    fn wake(&self, is_woken: impl Fn(&str) -> bool) {
        for wait in self.waits().of.values_mut() {
            if wait.behind.is_some() && is_woken(&wait.key) {
                wait.behind = None;
                wait.bell.notify_one();
            }
        }
    }

    /// Hears until it is told to stop.
    pub async fn run(self: Arc<Self>, server: Arc<RedisServer>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.hear(&server) => {}
        }
    }

    async fn hear(&self, server: &RedisServer) {
        let mut backoff = Backoff::default();
        let mut lines = None;
        loop {
            let request = self.request();
            if request.is_empty() {
                if timeout(IDLE, self.more.notified()).await.is_err() {
                    lines = None;
                    self.more.notified().await;
                }
                continue;
            }
            match self.listen(server, &mut lines, &request).await {
                Ok(woken) => {
                    backoff = Backoff::default();
                    self.wake(|key| woken.iter().any(|woken| woken == key));
                    if !woken.is_empty() {
                        sleep(BREATH).await;
                    }
                }
                Err(error) => {
                    if backoff.is_clear() {
                        tracing::warn!(
                            error,
                            at = server.servers.at(),
                            "can't wait for entries: they are looked for once a second"
                        );
                    }
                    lines = None;
                    backoff.fail();
                    // A fetch will tell what is wrong; and where nothing is, this is no reason to hurry.
                    backoff.over().await;
                    self.wake(|_| true);
                }
            }
        }
    }

    /// Which keys have something new; none when the server's patience, or ours, ended without.
    async fn listen(
        &self,
        server: &RedisServer,
        lines: &mut Option<Lines>,
        request: &Request,
    ) -> Result<Vec<String>, String> {
        // Of a cluster there is one.
        let key = request.first().map_or("", |(key, _)| key);
        let mut route = server.servers.route(key);
        loop {
            let mut open = match lines.take() {
                Some(open) => open,
                None => {
                    let link = route.link().map_err(|error| error.to_string())?;
                    let opened = Lines::open(link, server.timeout).await;
                    if let Err(error) = opened {
                        route.goes_on::<()>(&Err(error.clone()));
                        return Err(error.to_string());
                    }
                    opened.map_err(|error| error.to_string())?
                }
            };
            let answer = self.block(server, &mut open, request).await?;
            let at = open.link.at().to_owned();
            let answer = answer.map_err(|error| RedisError::of(&error, &at, Some(key)).into());
            match answer {
                Ok(answer) => {
                    *lines = Some(open);
                    return Ok(keys_of(answer));
                }
                Err(error) => {
                    let failed: Result<(), LogError> = Err(error);
                    if !route.goes_on(&failed) {
                        return failed
                            .map(|()| Vec::new())
                            .map_err(|error| error.to_string());
                    }
                }
            }
        }
    }

    /// Sends the request, and has it ended when somebody else begins to wait.
    async fn block(
        &self,
        server: &RedisServer,
        lines: &mut Lines,
        request: &Request,
    ) -> Result<redis::RedisResult<Value>, String> {
        let block = if lines.can_unblock {
            BLOCK
        } else {
            SHORT_BLOCK
        };
        let command = reading(request, block);
        let mut line = lines.line.clone();
        let answer = timeout(block + server.timeout, async {
            command.query_async(&mut line).await
        });
        let mut answer = std::pin::pin!(answer);
        let late = |_| "no answer to a request that blocks".to_owned();
        tokio::select! {
            biased;
            answer = &mut answer => return answer.map_err(late),
            () = self.more.notified(), if lines.can_unblock => {}
        }
        loop {
            if lines.can_unblock {
                lines.unblock(server.timeout).await?;
            }
            tokio::select! {
                biased;
                answer = &mut answer => return answer.map_err(late),
                () = sleep(AGAIN), if lines.can_unblock => {}
            }
        }
    }
}

/// The connections of ears.
struct Lines {
    link: Arc<Link>,
    /// On which requests block.
    line: MultiplexedConnection,
    /// As which the server knows it.
    id: i64,
    /// On which they are ended, once that has been done.
    bell: Option<MultiplexedConnection>,
    /// The user may end requests.
    can_unblock: bool,
}

impl Lines {
    async fn open(link: Arc<Link>, limit: Duration) -> Result<Self, LogError> {
        let mut line = link.dedicated().await?;
        let mut asking = cmd("CLIENT");
        let asked = timeout(limit, asking.arg("ID").query_async(&mut line)).await;
        let late = |_| RedisError::late(link.at(), None, limit);
        let id = asked.map_err(late)?.ok();
        Ok(Self {
            link,
            line,
            id: id.unwrap_or_default(),
            bell: None,
            can_unblock: id.is_some(),
        })
    }

    async fn unblock(&mut self, limit: Duration) -> Result<(), String> {
        let bell = match &mut self.bell {
            Some(bell) => bell,
            none => {
                let opened = self.link.dedicated().await;
                none.insert(opened.map_err(|error| error.to_string())?)
            }
        };
        let mut unblock = cmd("CLIENT");
        unblock.arg("UNBLOCK").arg(self.id);
        let answer: Result<redis::RedisResult<i64>, _> =
            timeout(limit, unblock.query_async(bell)).await;
        match answer.map_err(|_| "no answer to CLIENT UNBLOCK")? {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("NOPERM") => {
                self.can_unblock = false;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

fn reading(request: &Request, block: Duration) -> redis::Cmd {
    let mut command = cmd("XREAD");
    let millis = u64::try_from(block.as_millis()).unwrap_or(u64::MAX);
    command
        .arg("COUNT")
        .arg(1)
        .arg("BLOCK")
        .arg(millis)
        .arg("STREAMS");
    for (key, _) in request {
        command.arg(key);
    }
    for (_, behind) in request {
        command.arg(behind);
    }
    command
}

/// The keys that an answer has something of.
fn keys_of(answer: Value) -> Vec<String> {
    let key = |value: Value| match value {
        Value::BulkString(key) => Some(String::from_utf8_lossy(&key).into_owned()),
        _ => None,
    };
    match answer {
        Value::Array(streams) => {
            let first = |stream| match stream {
                Value::Array(parts) => parts.into_iter().next().and_then(key),
                _ => None,
            };
            streams.into_iter().filter_map(first).collect()
        }
        Value::Map(streams) => streams
            .into_iter()
            .filter_map(|(name, _)| key(name))
            .collect(),
        _ => Vec::new(),
    }
}

impl Ear {
    /// Returns when there may be something behind this offset. Cancel safe: what is waited for stays so.
    pub(super) async fn hear(&mut self, behind: Offset) {
        if self.asked != Some(behind) {
            self.asked = Some(behind);
            self.wait(Some(super::id_of(behind)));
            self.ears.more.notify_one();
        }
        self.bell.notified().await;
        self.asked = None;
    }

    /// Waits no longer.
    pub(super) fn rest(&mut self) {
        self.asked = None;
        self.wait(None);
    }

    fn wait(&self, behind: Option<String>) {
        if let Some(wait) = self.ears.waits().of.get_mut(&self.number) {
            wait.behind = behind;
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.ears.waits().of.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&str, &str)]) -> Request {
        pairs
            .iter()
            .map(|(key, behind)| ((*key).to_owned(), (*behind).to_owned()))
            .collect()
    }

    #[tokio::test]
    async fn who_waits_is_asked_for_until_he_is_woken_rests_or_goes() {
        let ears = Ears::new();
        let (mut first, mut second) = (ears.open("a"), ears.open("b"));
        assert!(ears.request().is_empty());
        let at = Offset::new(7 << 22);
        let soon = Duration::from_millis(1);
        assert!(timeout(soon, first.hear(at)).await.is_err());
        assert!(
            timeout(soon, second.hear(Offset::new(9 << 22 | 1)))
                .await
                .is_err()
        );
        assert_eq!(ears.request(), request(&[("a", "7-0"), ("b", "9-1")]));
        ears.wake(|key| key == "a");
        assert_eq!(ears.request(), request(&[("b", "9-1")]));
        first.hear(at).await;
        second.rest();
        assert!(ears.request().is_empty());
        assert!(timeout(soon, first.hear(at)).await.is_err());
        drop(first);
        assert!(ears.request().is_empty());
    }

    #[tokio::test]
    async fn of_two_readers_of_a_key_both_are_woken_by_what_one_of_them_lacks() {
        let ears = Ears::new();
        let (mut late, mut early) = (ears.open("a"), ears.open("a"));
        let soon = Duration::from_millis(1);
        assert!(
            timeout(soon, early.hear(Offset::new(10 << 22)))
                .await
                .is_err()
        );
        assert!(
            timeout(soon, late.hear(Offset::new(9 << 22)))
                .await
                .is_err()
        );
        assert_eq!(ears.request(), request(&[("a", "9-0")]));
    }

    #[test]
    fn an_answer_names_its_keys_by_either_protocol() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let entries = || Value::Array(Vec::new());
        let old = Value::Array(vec![Value::Array(vec![bulk("a"), entries()])]);
        assert_eq!(keys_of(old), ["a"]);
        assert_eq!(keys_of(Value::Map(vec![(bulk("b"), entries())])), ["b"]);
        assert!(keys_of(Value::Nil).is_empty());
    }
}
