//! Asks the cache for a partition: its header again and again, and the rows of channels, page by page.
//!
//! Owns: what has been asked and is not answered yet, [`LOADS_MAX`](super::fence::LOADS_MAX) channels at most. Never knows: what
//! the answers mean. A cache that does not answer holds nobody up: the task reads its log meanwhile.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};

use super::{fence::Next, join::Load, task::FETCH_BYTES};
use crate::{
    cache::redis::{AskError, Generation, GuardedCache, Header, Page, Walk},
    model::Channel,
    source::{Fetch, Source},
};

/// Between two looks at the header: so long a node does not know of a fold that was done anew.
const HEADER_EVERY: Duration = Duration::from_secs(1);
/// … and while there is none, or no answer.
const HEADER_SOON: Duration = Duration::from_millis(250);
/// A view that changes its fold while it is read is begun afresh so often.
const WALKS_MAX: usize = 4;

/// The cache of a partition's stream.
pub struct Cached {
    /// Where it is.
    pub cache: Arc<GuardedCache>,
    /// Which partition.
    pub partition: u32,
}

/// What the cache says.
pub(super) enum Says<S> {
    /// Its header, or that there is none.
    Header(Option<Header>),
    /// Nothing.
    NoAnswer,
    /// What reading a channel came to.
    Load(Channel, Load),
    /// What the log had for those whose rows are older than the tail, and its reader.
    Log(S, Option<Fetch>),
}

type Asked<S> = Pin<Box<dyn Future<Output = Says<S>> + Send>>;

/// What has been asked.
pub(super) struct Loading<S> {
    cached: Option<Arc<Cached>>,
    /// Reads what is older than the tail.
    reader: Option<S>,
    asked: FuturesUnordered<Asked<S>>,
}

impl<S: Source> Loading<S> {
    pub(super) fn new(cached: Option<Cached>, source: &S) -> Self {
        let mut loading = Self {
            reader: cached.as_ref().and_then(|_| source.another()),
            cached: cached.map(Arc::new),
            asked: FuturesUnordered::new(),
        };
        loading.ask_header(Duration::ZERO);
        loading
    }

    fn ask_header(&mut self, after: Duration) {
        let Some(cached) = self.cached.clone() else {
            return;
        };
        self.asked.push(Box::pin(async move {
            tokio::time::sleep(after).await;
            let header = cached.read_header().await;
            header.map_or(Says::NoAnswer, Says::Header)
        }));
    }

    /// Nobody needs the partition: nothing is asked any more.
    pub(super) fn rest(&mut self) {
        self.asked.clear();
    }

    /// Its log is read again, as by a source like this one.
    pub(super) fn wake(&mut self, source: &S) {
        self.rest();
        if self.cached.is_some() && self.reader.is_none() {
            self.reader = source.another();
        }
        self.ask_header(Duration::ZERO);
    }

    /// Reads a channel.
    pub(super) fn begin(&mut self, channel: Channel, generation: Generation) {
        let Some(cached) = self.cached.clone() else {
            return;
        };
        self.asked.push(Box::pin(async move {
            let load = cached.read(&channel, generation).await;
            Says::Load(channel, load)
        }));
    }

    /// Reads the log beside what the partition reads, where there is a reader at hand.
    pub(super) fn read_log(&mut self, next: &Next) {
        let Some(mut reader) = self.reader.take() else {
            return;
        };
        if let Some((epoch, lineage)) = &next.resume {
            reader.resume(epoch, next.after.unwrap_or_default(), lineage.as_deref());
        }
        let after = next.after;
        self.asked.push(Box::pin(async move {
            let fetch = reader.fetch(after, FETCH_BYTES).await;
            if fetch.is_err() {
                reader.changed().await;
            }
            Says::Log(reader, fetch.ok())
        }));
    }

    /// Takes the log's reader back.
    pub(super) fn give_back(&mut self, reader: S) {
        self.reader = Some(reader);
    }

    /// The next answer. Cancel safe.
    pub(super) async fn next(&mut self) -> Says<S> {
        match self.asked.next().await {
            Some(answer) => self.heard(answer),
            None => std::future::pending().await,
        }
    }

    /// An answer that is here already.
    pub(super) fn ready(&mut self) -> Option<Says<S>> {
        let answer = self.asked.next().now_or_never()??;
        Some(self.heard(answer))
    }

    /// Asks for the header again, after a while.
    fn heard(&mut self, answer: Says<S>) -> Says<S> {
        match &answer {
            Says::Header(Some(_)) => self.ask_header(HEADER_EVERY),
            Says::Header(None) | Says::NoAnswer => self.ask_header(HEADER_SOON),
            Says::Load(..) | Says::Log(..) => {}
        }
        answer
    }
}

impl Cached {
    async fn read_header(&self) -> Option<Option<Header>> {
        let header = self.cache.ask(|cache| cache.header(self.partition)).await;
        header.ok()
    }

    async fn read(&self, channel: &Channel, generation: Generation) -> Load {
        for _ in 0..WALKS_MAX {
            match self.walk(channel, &generation).await {
                Ok(Some(load)) => return load,
                Ok(None) => {}
                Err(_) => return Load::Failed,
            }
        }
        Load::Elsewhere(None)
    }

    /// Reads all pages; none when they are not of one view.
    async fn walk(
        &self,
        channel: &Channel,
        generation: &Generation,
    ) -> Result<Option<Load>, AskError> {
        let (mut walk, mut rows) = (Walk::default(), Vec::new());
        loop {
            let after = walk.after().cloned();
            let (partition, after) = (self.partition, after.as_ref());
            let page = self
                .cache
                .ask(|cache| cache.page(partition, generation, channel, after));
            match page.await? {
                Page::Elsewhere(header) => return Ok(Some(Load::Elsewhere(header.map(Box::new)))),
                Page::Lost(_) => return Ok(Some(Load::Lost)),
                Page::Page(page) => {
                    if walk.take(&page).is_err() {
                        return Ok(None);
                    }
                    rows.extend(page.rows);
                    if walk.is_whole() {
                        let header = Box::new(page.header);
                        return Ok(Some(Load::Rows(Box::new(walk), rows, header)));
                    }
                }
            }
        }
    }
}
