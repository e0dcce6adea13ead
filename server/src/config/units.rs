//! Durations and sizes as people write them.
//!
//! Does: text ↔ [`Duration`], text ↔ bytes. Owns: nothing. Never knows: keys. Keeps: what it shows it also reads.

use std::time::Duration;

/// 1,024 bytes.
pub(super) const KIB: usize = 1 << 10;
/// 1,024 KiB.
pub(super) const MIB: usize = 1 << 20;
/// 1,024 MiB.
pub(super) const GIB: usize = 1 << 30;
/// The largest size that any key takes.
pub(super) const SIZE_MAX: usize = 1 << 44;
/// The longest duration that any key takes.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(3650 * 86_400);

const DURATIONS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads `250ms`, `5s`, `10m`, `1h`, `1d`: an integer and its unit, nothing between.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATIONS).map(Duration::from_millis)
}

/// Reads `16MiB`, `1KiB`, `512B`: an integer and its unit, nothing between.
pub(super) fn parse_size(text: &str) -> Option<usize> {
    parse(text, &SIZES).and_then(|bytes| usize::try_from(bytes).ok())
}

/// The shortest exact text.
pub(super) fn show_duration(duration: Duration) -> String {
    show(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        &DURATIONS,
    )
}

/// The shortest exact text.
pub(super) fn show_size(bytes: usize) -> String {
    show(u64::try_from(bytes).unwrap_or(u64::MAX), &SIZES)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn show(number: u64, units: &[(&str, u64)]) -> String {
    let fits = |factor: u64| {
        if number == 0 {
            factor == 1_000 || factor == 1
        } else {
            number.is_multiple_of(factor)
        }
    };
    units.iter().find(|(_, factor)| fits(*factor)).map_or_else(
        || number.to_string(),
        |(name, factor)| format!("{}{name}", number / factor),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_sizes_are_read() {
        let ms = |text| parse_duration(text).map(|d| d.as_millis());
        assert_eq!(
            ["250ms", "5s", "10m", "1h", "1d", "0s"].map(ms),
            [
                Some(250),
                Some(5_000),
                Some(600_000),
                Some(3_600_000),
                Some(86_400_000),
                Some(0)
            ]
        );
        assert_eq!(
            ["16MiB", "1KiB", "2GiB", "7B"].map(parse_size),
            [16 * MIB, KIB, 2 * GIB, 7].map(Some)
        );
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "+5s",
            "1.5s",
            "5S",
            "5sec",
            "99999999999999999999s",
            "999999999999999d",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
        for bad in [
            "",
            "5",
            "1MB",
            "1 MiB",
            "1mib",
            "-1KiB",
            "٣KiB",
            "18446744073709551615KiB",
        ] {
            assert_eq!(parse_size(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(number in 0..=(1_u64 << 44)) {
            let duration = Duration::from_millis(number);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
            let size = usize::try_from(number).unwrap();
            prop_assert_eq!(parse_size(&show_size(size)), Some(size));
        }
    }
}
