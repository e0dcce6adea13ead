//! The fence join: rows of a cache, and what the tail has behind them, become a resident view.
//!
//! Rows were read page by page, each as of its own moment; changes behind a row's page are applied to it, from the tail and, of
//! what the cache knew before this node did, as they come. The view is served once this node has applied as much as its newest
//! page had. Keeps: I3, I5.

use super::{
    Partition,
    backfill::{Filling, Origin},
    backing::Backing,
    fence::{FenceReport, Next},
    view::View,
};
use crate::{
    cache::{
        CachedView,
        redis::{CachedRow, DecimalOffset, Generation, Header, ValueError, Walk},
    },
    model::{Channel, Moment, Offset, Row, RowId, Rows, StaleReason},
    source::Fetch,
};

/// What reading a channel from the cache came to.
#[derive(Debug)]
pub enum Load {
    /// All of its rows, and the header of the last page.
    Rows(Box<Walk>, Vec<(RowId, CachedRow)>, Box<Header>),
    /// Another generation has become the current one, or none.
    Elsewhere(Option<Box<Header>>),
    /// Its keys are gone: who folds the partition folds it anew.
    Lost,
    /// The cache did not answer, or with something else.
    Failed,
}

impl Partition {
    /// What the next fetch is asked for, whose answer [`Partition::take`] gets; none before it is known where to begin.
    #[must_use]
    pub fn next_fetch(&mut self) -> Option<Next> {
        let after = self.next_after();
        match &mut self.backing {
            Backing::Cache(fence) => fence.next(after),
            Backing::Log(_) | Backing::Fold(_) => Some(Next {
                after,
                resume: None,
            }),
        }
    }

    /// Whether a fetch is due since the log is to be read from somewhere else than before.
    #[must_use]
    pub fn is_to_begin(&self) -> bool {
        match &self.backing {
            Backing::Cache(fence) => {
                let applied = self.next_after().filter(|_| !self.has_just_woken());
                fence.is_to_begin(applied)
            }
            Backing::Log(_) | Backing::Fold(_) => false,
        }
    }

    /// Takes the fetch that was to go on from where a fold is: from there on, if the log goes on from it. Tells whether the fetch
    /// is dealt with.
    pub(super) fn land(&mut self, fetch: &Fetch, asked_at: Moment, now: Moment) -> bool {
        let Backing::Cache(fence) = &mut self.backing else {
            return false;
        };
        let Some(header) = fence.take_jump() else {
            return false;
        };
        if fence.goes_on(&header, fetch) {
            let at = Offset::try_from(&header.applied).unwrap_or(fetch.start);
            self.open(fetch, at, now);
            return false;
        }
        if self.epoch.is_none() {
            self.restart(fetch, fetch.head, asked_at, now);
        }
        true
    }

    /// The cache was asked for its header: it has this, or none.
    pub fn saw_header(&mut self, header: Option<Header>) {
        let far = header
            .as_ref()
            .is_some_and(|header| self.is_far_behind(header));
        let (tail, idle) = (&self.tail, self.views.is_empty());
        if let Backing::Cache(fence) = &mut self.backing {
            fence.saw(header, |at| !far && at >= tail.floor(), far || idle);
        }
    }

    /// The cache was asked, and did not answer.
    pub fn missed_header(&mut self, now: Moment) {
        if let Backing::Cache(fence) = &mut self.backing {
            fence.did_not_answer(now);
        }
        if self.epoch.is_none() {
            self.health.trouble = Some(StaleReason::CacheUnavailable);
            self.tail.set_health(self.health);
        }
    }

    /// What there is to see of its cache, where it has one.
    #[must_use]
    pub fn fence_report(&self) -> Option<FenceReport> {
        match &self.backing {
            Backing::Cache(fence) => Some(fence.report()),
            Backing::Log(_) | Backing::Fold(_) => None,
        }
    }

    /// The next channel that is to be read from the cache, and of which generation.
    pub fn next_load(&mut self, now: Moment) -> Option<(Channel, Generation)> {
        match &mut self.backing {
            Backing::Cache(fence) => fence.next_load(now),
            Backing::Log(_) | Backing::Fold(_) => None,
        }
    }

    /// When a channel may be read that can't be now.
    #[must_use]
    pub fn load_at(&self) -> Option<Moment> {
        match &self.backing {
            Backing::Cache(fence) => fence.load_at(),
            Backing::Log(_) | Backing::Fold(_) => None,
        }
    }

    /// Takes what reading a channel came to.
    pub fn loaded(&mut self, channel: &Channel, load: Load, now: Moment, now_ms: i64) {
        let Backing::Cache(fence) = &mut self.backing else {
            return;
        };
        if !fence.loaded(channel) {
            return;
        }
        let joined = match load {
            Load::Rows(walk, rows, header) => {
                let joins = fence.may_join(&header, walk.proven_ms(), now_ms);
                joins && self.join_rows(channel, walk, rows, &header.since, now) == Ok(true)
            }
            Load::Elsewhere(header) => {
                self.saw_header(header.map(|header| *header));
                false
            }
            Load::Lost => {
                tracing::warn!(stream = self.settings.stream, partition = self.settings.partition, %channel, "keys of this channel are gone from the cache: it is not served from there until it is folded anew");
                false
            }
            Load::Failed => {
                fence.did_not_answer(now);
                false
            }
        };
        if let (false, Backing::Cache(fence)) = (joined, &mut self.backing) {
            fence.load_failed(channel, now);
        }
    }

    /// Joins rows with the tail; where it does not reach back to them, once the log has been read in between. Tells whether
    /// either was possible.
    fn join_rows(
        &mut self,
        channel: &Channel,
        walk: Box<Walk>,
        rows: Vec<(RowId, CachedRow)>,
        since: &DecimalOffset,
        now: Moment,
    ) -> Result<bool, ValueError> {
        let filled = walk
            .filled()
            .map_or(Ok(Offset::BEFORE_ALL), Offset::try_from)?;
        let offset = |text: Option<&_>| text.map_or(Ok(Offset::BEFORE_ALL), Offset::try_from);
        let filling = Filling {
            cached: CachedView::of(read_rows(rows)?, offset(walk.last_change())?),
            origin: Origin::Cache,
            since: Offset::try_from(since)?,
            walk,
            filled,
            changes: Vec::new(),
            is_in_pass: false,
            settled: Offset::BEFORE_ALL,
        };
        match &mut self.backing {
            Backing::Cache(fence) if filled < self.tail.floor() => {
                Ok(fence.backfill.add(channel, filling))
            }
            _ => self.attach(channel, filling, now).map(|()| true),
        }
    }

    /// Makes a channel resident, whose rows and changes reach to the tail.
    fn attach(
        &mut self,
        channel: &Channel,
        filling: Filling,
        now: Moment,
    ) -> Result<(), ValueError> {
        let Filling {
            walk,
            cached,
            since,
            filled,
            changes,
            settled,
            ..
        } = filling;
        let offset = |text: Option<&_>| text.map_or(Ok(Offset::BEFORE_ALL), Offset::try_from);
        // What was read of the log beside may have gone further than this node has applied.
        let fence = offset(walk.fence())?.max(settled).max(filled);
        let last_change = cached.last_change;
        let updates = self.tail.between(channel, filled, self.applied, usize::MAX);
        let updates = updates.unwrap_or_default();
        let nothing = last_change == Offset::BEFORE_ALL && changes.is_empty() && updates.is_empty();
        // Before `settled` what was there may have been compacted away.
        if nothing && settled <= self.applied {
            // A name that anybody may invent takes little room, and bounded.
            self.awaited.add(channel);
            return Ok(());
        }
        let view = View::of_pages(cached, fence, walk, &self.held, now);
        let mut view = view.burying(self.settings.is_later);
        for (change, at) in &changes {
            view.apply(change, *at);
        }
        for update in &updates {
            view.apply(&update.update.change, update.update.position.offset);
        }
        let last_filled = changes.last().map_or(Offset::BEFORE_ALL, |(_, at)| *at);
        self.note_last_change(channel, last_change.max(since).max(last_filled));
        self.views.insert(channel.clone(), view);
        Ok(())
    }

    /// What of the log is to be read for views whose rows are older than the tail, or, since the cache does not answer, unknown:
    /// asked as [`Partition::next_fetch`] says, of a reader of its own.
    #[must_use]
    pub fn next_backfill(&mut self, now: Moment) -> Option<Next> {
        match &mut self.backing {
            Backing::Cache(fence) => fence.next_backfill(now),
            Backing::Log(_) | Backing::Fold(_) => None,
        }
    }

    /// Takes what was read of it; none where the log did not answer.
    pub fn backfilled(&mut self, fetch: Option<&Fetch>, now: Moment) {
        let Backing::Cache(fence) = &mut self.backing else {
            return;
        };
        let Some(fetch) = fetch else {
            return fence.backfill.failed();
        };
        let folds = fence.backfill.is_to_fold();
        let decoder = &mut self.decoder;
        let changes = fetch.records.iter().filter_map(|record| {
            // What means nothing has been counted, or will be, where it is applied.
            Some((decoder.decode(record).ok()?, record.offset))
        });
        let goes_on = fence.log() == Some(&fetch.epoch);
        let fits = !folds || fence.alone.fits(fetch);
        if !fits || !fence.backfill.took(fetch, changes.collect()) || !goes_on {
            return fence.give_up_backfill(now);
        }
        let finished = fence.finish_backfill(self.tail.floor());
        for (channel, filling) in finished {
            if self.attach(&channel, filling, now).is_err() {
                tracing::error!(%channel, "the cache has offsets that this log can't have");
            }
        }
    }

    /// A channel has not changed since, but for what this node has seen.
    fn note_last_change(&mut self, channel: &Channel, at: Offset) {
        match self.last_change.get_mut(channel) {
            Some(last) => *last = at.max(*last),
            None => {
                self.last_change.insert(channel.clone(), at);
                self.names.push_back(channel.clone());
            }
        }
    }
}

fn read_rows(rows: Vec<(RowId, CachedRow)>) -> Result<Rows, ValueError> {
    let row = |(id, row): (RowId, CachedRow)| {
        let offset = Offset::try_from(&row.offset)?;
        let (data, ts_ms) = (row.data, row.ts_ms);
        Ok((
            id,
            Row {
                data,
                ts_ms,
                offset,
            },
        ))
    };
    rows.into_iter().map(row).collect()
}
