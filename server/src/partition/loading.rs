//! Asks the cache for a partition: its header again and again, and the rows of channels, page by page.
//!
//! Owns: what has been asked and is not answered yet, [`LOADS_MAX`](super::fence::LOADS_MAX) channels at most. Never knows: what
//! the answers mean. A cache that does not answer holds nobody up: the task reads its log meanwhile.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};

use super::join::Load;
use crate::{
    cache::redis::{AskError, Generation, GuardedCache, Header, Page, Walk},
    model::Channel,
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
pub(super) enum CacheSays {
    /// Its header, or that there is none.
    Header(Option<Header>),
    /// Nothing.
    NoAnswer,
    /// What reading a channel came to.
    Load(Channel, Load),
}

type Asked = Pin<Box<dyn Future<Output = CacheSays> + Send>>;

/// What has been asked.
pub(super) struct Loading {
    cached: Option<Arc<Cached>>,
    asked: FuturesUnordered<Asked>,
}

impl Loading {
    pub(super) fn new(cached: Option<Cached>) -> Self {
        let mut loading = Self {
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
            cached.read_header().await
        }));
    }

    /// Reads a channel.
    pub(super) fn begin(&mut self, channel: Channel, generation: Generation) {
        let Some(cached) = self.cached.clone() else {
            return;
        };
        self.asked.push(Box::pin(async move {
            let load = cached.read(&channel, generation).await;
            CacheSays::Load(channel, load)
        }));
    }

    /// The next answer. Cancel safe.
    pub(super) async fn next(&mut self) -> CacheSays {
        match self.asked.next().await {
            Some(answer) => self.heard(answer),
            None => std::future::pending().await,
        }
    }

    /// An answer that is here already.
    pub(super) fn ready(&mut self) -> Option<CacheSays> {
        let answer = self.asked.next().now_or_never()??;
        Some(self.heard(answer))
    }

    /// Asks for the header again, after a while.
    fn heard(&mut self, answer: CacheSays) -> CacheSays {
        match &answer {
            CacheSays::Header(Some(_)) => self.ask_header(HEADER_EVERY),
            CacheSays::Header(None) | CacheSays::NoAnswer => self.ask_header(HEADER_SOON),
            CacheSays::Load(..) => {}
        }
        answer
    }
}

impl Cached {
    async fn read_header(&self) -> CacheSays {
        let header = self.cache.ask(|cache| cache.header(self.partition)).await;
        header.map_or(CacheSays::NoAnswer, CacheSays::Header)
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
