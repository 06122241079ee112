//! Sizes, amounts and times as people write and read them.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster_types::Amount;

const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const DECIMAL: [(&str, u64); 8] = [
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
];

/// `4GiB`, `512 MB`, `1.5GiB` or a number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let problem = || format!("`{text}` is no size: write a number with a unit, like 4GiB or 512MiB");
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| problem())?;
    let unit = unit.trim();
    let factor = if unit.is_empty() {
        1
    } else {
        let known = UNITS.iter().chain(&DECIMAL).find(|(name, _)| name.eq_ignore_ascii_case(unit));
        known.ok_or_else(problem)?.1
    };
    let bytes = number * factor as f64;
    if bytes > Amount::PER_UNIT as f64 * 9e10 {
        return Err(format!("`{text}` is more than can be counted"));
    }
    Ok(bytes as u64)
}

/// A number of cores or GPUs.
pub fn parse_amount(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim().parse().map_err(|_| format!("`{text}` is no number"))?;
    check_amount(number).map_err(|problem| format!("{problem}; write a number like 2 or 0.5"))
}

/// The number, if it can be an amount.
pub fn check_amount(number: f64) -> Result<f64, String> {
    Amount::from_f64(number).map(|_| number).map_err(|error| error.to_string())
}

/// A share of a whole, without nothing.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.trim().parse().ok().filter(|share| (0.01..=1.0).contains(share));
    share.ok_or_else(|| format!("`{text}` is no share; write a number between 0.01 and 1, like 0.9"))
}

/// `2m`, `1.5h`, `500ms`, `90s`, or seconds as a bare number.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => f64::NAN,
    };
    let seconds = number.parse::<f64>().unwrap_or(f64::NAN) * seconds;
    match (0.0..=1e9).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(format!("`{text}` is no time; write one like 90s, 2m or 1h")),
    }
}

/// `{"tpu": 1}`.
pub fn parse_resources(text: &str) -> Result<Resources, String> {
    let problem = |reason: String| format!("{reason}; write JSON like {{\"tpu\": 1}}");
    let resources: Resources = serde_json::from_str(text).map_err(|error| problem(error.to_string()))?;
    check_resources(resources).map_err(problem)
}

/// Custom resources by name.
pub type Resources = BTreeMap<String, f64>;

/// The resources, if their names are free and their numbers amounts.
pub fn check_resources(resources: Resources) -> Result<Resources, String> {
    for (name, amount) in &resources {
        let own_flag = match name.as_str() {
            "" => return Err("a resource needs a name".to_owned()),
            "CPU" => "--num-cpus",
            "GPU" => "--num-gpus",
            "memory" => "--memory",
            _ => {
                check_amount(*amount).map_err(|problem| format!("`{name}` {problem}"))?;
                continue;
            }
        };
        return Err(format!("`{name}` is no custom resource: set it with {own_flag}"));
    }
    Ok(resources)
}

/// `MODE=test`.
pub fn parse_variable(text: &str) -> Result<(String, String), String> {
    parse_label(text).map_err(|_| format!("`{text}` sets nothing: write key=value"))
}

/// `zone=west`.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label: write key=value")),
    }
}

/// `1.5 GiB`, `640 KiB`, `12 B`.
pub fn bytes(count: u64) -> String {
    let (unit, size) = UNITS.into_iter().find(|(_, size)| count >= *size).unwrap_or(("B", 1));
    let number = count as f64 / size as f64;
    if size == 1 || number >= 100.0 { format!("{number:.0} {unit}") } else { format!("{number:.1} {unit}") }
}

/// A length of time in two figures or so: `340 µs`, `1.2 s`, `3 min`, `2 h 5 min`.
pub fn milliseconds(ms: f64) -> String {
    let seconds = ms / 1000.0;
    match seconds {
        s if s <= 0.0 => "0".to_owned(),
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{ms:.0} ms"),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min", (s / 60.0) as u64),
        s if s < 172_800.0 => format!("{} h {} min", (s / 3600.0) as u64, (s / 60.0) as u64 % 60),
        s => format!("{} days", (s / 86_400.0) as u64),
    }
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `2`, `0.5`.
pub fn amount(number: f64) -> String {
    format!("{}", (number * 10_000.0).round() / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [
            ("4GiB", 4 << 30),
            ("512 MiB", 512 << 20),
            ("1.5gib", 3 << 29),
            ("100", 100),
            ("2GB", 2_000_000_000),
            ("1G", 1 << 30),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_bytes(text), Ok(expected), "{text}");
        }
        for text in ["lots", "", "-1", "4 parsecs", "GiB", "nan", "1e3", "99999999 TiB", "1.2.3"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_are_checked() {
        assert_eq!(parse_amount("0.5"), Ok(0.5));
        for text in ["-1", "nan", "inf", "two"] {
            assert!(parse_amount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn resources_are_json_with_free_names() {
        assert_eq!(parse_resources(r#"{"tpu": 1}"#).unwrap()["tpu"], 1.0);
        assert!(parse_resources(r#"{"CPU": 1}"#).unwrap_err().contains("--num-cpus"));
        assert!(parse_resources(r#"{"tpu": -1}"#).unwrap_err().contains("negative"));
        assert!(parse_resources("tpu").unwrap_err().contains(r#"{"tpu": 1}"#));
    }

    #[test]
    fn sizes_times_and_counts_are_written_short() {
        assert_eq!(
            [0, 12, 1 << 20, 3 << 29, 100 << 30].map(bytes),
            ["0 B", "12 B", "1.0 MiB", "1.5 GiB", "100 GiB"]
        );
        assert_eq!(
            [0.0, 0.34, 12.0, 1234.0, 200_000.0, 7_500_000.0, 1e9].map(milliseconds),
            ["0", "340 µs", "12 ms", "1.2 s", "3 min", "2 h 5 min", "11 days"]
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
