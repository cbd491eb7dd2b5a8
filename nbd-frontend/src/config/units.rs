//! Sizes and durations as people write them: `"64MiB"`, `"500ms"`. A bare number is refused,
//! because its reader would have to guess the unit.

use std::time::Duration;

/// Why a text is no size or duration, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError {
    pub message: String,
    pub remedy: String,
}

const SIZE_UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// In microseconds.
const DURATION_UNITS: [(&str, u64); 5] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
];

/// Bytes of a size such as `64MiB`. Zero needs no unit.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse(text, &SIZE_UNITS, "size", "64MiB")
}

/// Bytes per second: a size, with or without `/s`.
pub fn parse_rate(text: &str) -> Result<u64, UnitError> {
    let amount = text.trim_end().strip_suffix("/s").unwrap_or(text);
    parse(amount, &SIZE_UNITS, "rate", "100MiB/s")
}

/// A duration such as `200us`, `500ms`, `3s`, `2m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &DURATION_UNITS, "duration", "3s").map(Duration::from_micros)
}

fn parse(text: &str, units: &[(&str, u64)], what: &str, example: &str) -> Result<u64, UnitError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let accepted = || {
        let names: Vec<_> = units.iter().map(|(name, _)| *name).collect();
        format!(
            "write a whole number and one of {}, for example \"{example}\"",
            names.join(", ")
        )
    };
    if number.is_empty() {
        return Err(UnitError {
            message: format!("{text:?} is no {what}"),
            remedy: accepted(),
        });
    }
    let too_large = || UnitError {
        message: format!("{text:?} is too large"),
        remedy: "write a smaller value".into(),
    };
    let number: u64 = number.parse().map_err(|_| too_large())?;
    if unit.is_empty() {
        return if number == 0 {
            Ok(0)
        } else {
            Err(UnitError {
                message: format!("{text:?} has no unit"),
                remedy: accepted(),
            })
        };
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(UnitError {
            message: format!("{unit:?} is no unit of a {what}"),
            remedy: accepted(),
        });
    };
    number.checked_mul(*factor).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_and_decimal_units() {
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("64 MiB"), Ok(64 << 20));
        assert_eq!(parse_size("3GB"), Ok(3_000_000_000));
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(parse_rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(parse_rate("100MiB"), Ok(100 << 20));
    }

    #[test]
    fn durations_take_the_usual_units() {
        assert_eq!(parse_duration("200us"), Ok(Duration::from_micros(200)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("3s"), Ok(Duration::from_secs(3)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn a_bare_number_is_refused_with_an_example() {
        let error = parse_size("64").unwrap_err();
        assert_eq!(error.message, "\"64\" has no unit");
        assert!(error.remedy.contains("\"64MiB\""), "{}", error.remedy);
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in ["", "MiB", "-3s", "3.5s", "3 weeks", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        let error = parse_size("99999999999TiB").unwrap_err();
        assert!(error.message.contains("too large"));
        assert!(parse_size("10s").unwrap_err().message.contains("no unit"));
    }
}
