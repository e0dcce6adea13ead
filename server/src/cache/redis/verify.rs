//! Whether what there is of a partition is whole: every channel, every row.

use super::{
    ManifestPage, Page, RedisCache, RedisError, RedisFault, RowsPage,
    header::{DecimalOffset, Generation, Header},
    walk::Walk,
};
use crate::model::Channel;

/// Most problems that a report tells; it counts the others.
pub const PROBLEMS_MAX: usize = 5;

/// What looking at a partition came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The header of the current generation; none: there is nothing to read.
    pub header: Option<Header>,
    /// Channels that were looked at.
    pub channels: usize,
    /// Rows that were read.
    pub rows: usize,
    /// Bytes of their data.
    pub bytes: usize,
    /// Generations beside the current one.
    pub beside: usize,
    /// Dropped generations with keys left.
    pub dropped: usize,
    /// What is wrong, the first [`PROBLEMS_MAX`].
    pub problems: Vec<String>,
    /// How much is wrong in all.
    pub found: usize,
}

impl Report {
    fn problem(&mut self, text: String) {
        self.found += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }
}

impl RedisCache {
    /// Reads all of a partition and says what is wrong with it. It may be written to meanwhile; a flip ends the look, and the
    /// report says so.
    ///
    /// # Errors
    /// When Redis does not answer, or with what is none of ours. What is damaged is a problem of the report.
    pub async fn verify(&self, partition: u32) -> Result<Report, RedisError> {
        let mut report = Report::default();
        let home = match self.home(partition).await {
            Err(error) if error.fault() == RedisFault::Damaged => {
                report.problem(error.what().to_owned());
                return Ok(report);
            }
            home => home?,
        };
        (report.beside, report.dropped) = (home.beside.len(), home.dropped.len());
        let Some(header) = home.current else {
            return Ok(report);
        };
        let generation = header.generation.clone();
        report.header = Some(header);
        let mut after: Option<String> = None;
        loop {
            let page = self
                .manifest(partition, &generation, after.as_deref())
                .await;
            let Some(page) = settled(page, "the manifest", &mut report)? else {
                return Ok(report);
            };
            self.verify_channels(partition, &generation, &page, &mut report)
                .await?;
            after = page.channels.last().map(|(name, _)| name.clone());
            if !page.more || after.is_none() {
                return Ok(report);
            }
        }
    }

    async fn verify_channels(
        &self,
        partition: u32,
        generation: &Generation,
        manifest: &ManifestPage,
        report: &mut Report,
    ) -> Result<(), RedisError> {
        for (name, last) in &manifest.channels {
            report.channels += 1;
            if *last > manifest.header.applied {
                report.problem(format!(
                    "channel {name}: its last change {last} is not applied yet"
                ));
            }
            match Channel::new(&self.stream, name) {
                Ok(channel) => {
                    self.verify_rows(partition, generation, &channel, report)
                        .await?
                }
                Err(error) => report.problem(format!("channel {name}: {error}")),
            }
        }
        Ok(())
    }

    async fn verify_rows(
        &self,
        partition: u32,
        generation: &Generation,
        channel: &Channel,
        report: &mut Report,
    ) -> Result<(), RedisError> {
        let mut walk = Walk::default();
        let what = format!("channel {}", channel.name());
        while !walk.is_whole() {
            let page = self
                .page(partition, generation, channel, walk.after())
                .await;
            let Some(page) = settled(page, &what, report)? else {
                return Ok(());
            };
            if let Err(turned) = walk.take(&page) {
                report.problem(format!("{what}: changed under the look: {turned:?}"));
                return Ok(());
            }
            look_at_rows(&what, &page, report);
        }
        Ok(())
    }
}

/// A page, or what is wrong instead.
fn settled<T>(
    page: Result<Page<T>, RedisError>,
    what: &str,
    report: &mut Report,
) -> Result<Option<T>, RedisError> {
    match page {
        Ok(Page::Page(page)) => return Ok(Some(page)),
        Ok(Page::Elsewhere(_)) => {
            report.problem(format!(
                "{what}: another generation took this one's place meanwhile"
            ));
        }
        Ok(Page::Lost(_)) => report.problem(format!("{what}: keys are lost")),
        Err(error) if error.fault() == RedisFault::Damaged => {
            report.problem(format!("{what}: {}", error.what()));
        }
        Err(error) => return Err(error),
    }
    Ok(None)
}

fn look_at_rows(what: &str, page: &RowsPage, report: &mut Report) {
    let last: Option<&DecimalOffset> = page.last_change.as_ref();
    for (id, row) in &page.rows {
        report.rows += 1;
        report.bytes += row.data.len();
        if Some(&row.offset) > last {
            report.problem(format!(
                "{what}: row {:?} is newer than the channel",
                id.as_str()
            ));
        }
        if serde_json::from_slice::<serde::de::IgnoredAny>(&row.data).is_err() {
            report.problem(format!("{what}: row {:?} is no JSON", id.as_str()));
        }
    }
}
