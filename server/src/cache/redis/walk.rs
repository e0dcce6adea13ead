//! Reading a view page by page while it is written to.
//!
//! Each page has the header of its own moment. They make one view together when they are of one generation and none is older
//! than the one before it; then a row is as of its own page, and the changes after that page's `applied` still have to be
//! applied to it. A page holds all rows of a range of ids, so every row, there or not, belongs to exactly one page.

use super::{
    RowsPage,
    header::{DecimalOffset, Generation, Header},
};
use crate::model::RowId;

/// Why the pages are not of one view. Begin afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// Another generation has become the current one.
    OtherGeneration,
    /// The cache went back behind an earlier page.
    WentBack,
}

/// How far a view has been read.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// The last id of each page's range and the page's `applied`; the last page's range has no end.
    pages: Vec<(Option<RowId>, DecimalOffset)>,
    generation: Option<Generation>,
    settled: Option<DecimalOffset>,
    last_change: Option<DecimalOffset>,
    proven_ms: i64,
}

impl Walk {
    /// All of a view, as of one offset.
    #[must_use]
    pub fn of_whole(at: DecimalOffset) -> Self {
        Self {
            pages: vec![(None, at)],
            ..Self::default()
        }
    }

    /// Takes the next page.
    ///
    /// # Errors
    /// When it is not of the same view; whatever was read is worth nothing then.
    pub fn take(&mut self, page: &RowsPage) -> Result<(), Turned> {
        let Header {
            generation,
            applied,
            settled,
            ..
        } = &page.header;
        match (&self.generation, self.pages.last()) {
            (Some(first), _) if first != generation => return Err(Turned::OtherGeneration),
            (_, Some((_, before))) if applied < before => return Err(Turned::WentBack),
            (None, _) => {
                self.generation = Some(generation.clone());
                self.proven_ms = page.header.proven_ms;
            }
            _ => {}
        }
        let end = page
            .more
            .then(|| page.rows.last().map(|(id, _)| id.clone()));
        self.pages.push((end.flatten(), applied.clone()));
        self.settled = self.settled.take().max(Some(settled.clone()));
        self.last_change.clone_from(&page.last_change);
        Ok(())
    }
    /// The row behind which the next page begins; none before the first.
    #[must_use]
    pub fn after(&self) -> Option<&RowId> {
        self.pages.last().and_then(|(end, _)| end.as_ref())
    }
    /// Whether the last page was read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.pages.last().is_some_and(|(end, _)| end.is_none())
    }
    /// The offset as of which a row was read, or found not to be there: later changes apply to it.
    #[must_use]
    pub fn row_base(&self, row: &RowId) -> Option<&DecimalOffset> {
        let page = self
            .pages
            .partition_point(|(end, _)| end.as_ref().is_some_and(|end| end < row));
        self.pages.get(page).map(|(_, applied)| applied)
    }
    /// The oldest page's `applied`: the changes after it are needed.
    #[must_use]
    pub fn filled(&self) -> Option<&DecimalOffset> {
        self.pages.first().map(|(_, applied)| applied)
    }
    /// The newest page's `applied`, or `settled` where that is later: the view is a state of the log from there on.
    #[must_use]
    pub fn fence(&self) -> Option<&DecimalOffset> {
        let applied = self.pages.last().map(|(_, applied)| applied);
        applied.max(self.settled.as_ref())
    }
    /// The offset of the channel's newest change, as of the last page; none when nothing ever changed in it.
    #[must_use]
    pub const fn last_change(&self) -> Option<&DecimalOffset> {
        self.last_change.as_ref()
    }
    /// The first page's `proven_ms`: until when what follows it has all its tombstones.
    #[must_use]
    pub const fn proven_ms(&self) -> i64 {
        self.proven_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::redis::batch::CachedRow;

    fn page(generation: &str, applied: u64, rows: &[&str], more: bool) -> RowsPage {
        let header = format!(
            "{{\"epoch\":\"e\",\"generation\":\"{generation}\",\"fold_id\":\"\",\"applied\":\"{applied}\",\"lineage\":\"\",\"proven_ms\":1,\
             \"since\":\"0\",\"settled\":\"12\",\"complete\":true,\"written_at_ms\":1}}"
        );
        let row = |id: &&str| {
            let row = CachedRow {
                offset: "1".parse().unwrap(),
                ts_ms: 0,
                data: "1".into(),
            };
            (RowId::new(id).unwrap(), row)
        };
        RowsPage {
            header: Header::from_text(&header).unwrap(),
            last_change: None,
            rows: rows.iter().map(row).collect(),
            more,
        }
    }

    #[test]
    fn a_row_is_as_of_the_page_of_its_range() {
        let mut walk = Walk::default();
        walk.take(&page("g", 10, &["b", "d"], true)).unwrap();
        assert_eq!(walk.after(), Some(&RowId::new("d").unwrap()));
        assert!(!walk.is_whole());
        walk.take(&page("g", 11, &["f"], true)).unwrap();
        walk.take(&page("g", 15, &[], false)).unwrap();
        assert!(walk.is_whole());
        for (row, base) in [
            ("", "10"),
            ("a", "10"),
            ("d", "10"),
            ("e", "11"),
            ("f", "11"),
            ("g", "15"),
        ] {
            let found = walk.row_base(&RowId::new(row).unwrap()).unwrap();
            assert_eq!(found.as_str(), base, "{row}");
        }
        assert_eq!(walk.filled().unwrap().as_str(), "10");
        assert_eq!(walk.fence().unwrap().as_str(), "15");
    }

    #[test]
    fn a_view_is_of_one_generation_that_never_goes_back() {
        let mut walk = Walk::default();
        walk.take(&page("g", 10, &["b"], true)).unwrap();
        assert_eq!(walk.fence().unwrap().as_str(), "12");
        assert_eq!(
            walk.take(&page("h", 11, &[], false)),
            Err(Turned::OtherGeneration)
        );
        assert_eq!(walk.take(&page("g", 9, &[], false)), Err(Turned::WentBack));
        assert_eq!(walk.take(&page("g", 10, &[], false)), Ok(()));
    }
}
