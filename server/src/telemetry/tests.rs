use super::*;

const PAGE: &str = include_str!("../../../docs/reference/metrics.md");

/// Name, kind, labels and meaning of each row of the page's table.
fn rows_of_page() -> Vec<[String; 4]> {
    PAGE.lines()
        .filter(|line| line.starts_with("| `tidegate_"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let cell = |at: usize| cells[at].replace('`', "");
            [cell(0), cell(1), cell(2), cell(3)]
        })
        .collect()
}

#[test]
fn the_page_lists_every_metric_with_its_meaning() {
    let of_code: Vec<[String; 4]> = ALL
        .iter()
        .map(|metric| {
            let labels = if metric.labels.is_empty() {
                "—".to_owned()
            } else {
                metric.labels.join(", ")
            };
            let kind = metric.kind.word().to_owned();
            [metric.full_name(), kind, labels, metric.help.to_owned()]
        })
        .collect();
    assert_eq!(rows_of_page(), of_code);
}

#[test]
fn names_are_unique_and_plain_and_labels_come_from_closed_sets() {
    let closed = [
        "worker",
        "stream",
        "upstream",
        "partition",
        "transport",
        "code",
        "outcome",
        "limit",
        "use",
        "step",
    ];
    let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
    for metric in ALL {
        assert!(
            metric
                .name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{}",
            metric.name
        );
        assert!(!metric.name.ends_with("_total"), "{}", metric.name);
        assert!(
            metric.labels.iter().all(|label| closed.contains(label)),
            "{}",
            metric.name
        );
    }
}

#[test]
fn the_page_explains_every_outcome_of_an_offer() {
    for outcome in OFFER_OUTCOMES {
        assert!(PAGE.contains(&format!("`{outcome}` (")), "{outcome}");
    }
}

#[test]
fn the_page_explains_every_outcome_of_a_call() {
    for (outcome, _) in UpstreamCounts::default().outcomes() {
        assert!(PAGE.contains(&format!("`{outcome}` (")), "{outcome}");
    }
}
