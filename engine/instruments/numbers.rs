//! Numbers for people: few digits, never a power of ten.

/// Returns a number with three significant digits or all before its point: `0.0123`, `12.3`, `1230`.
pub fn plain(value: f64) -> String {
    format!("{value:.*}", decimals(value))
}

/// Returns a quantity with three significant digits and an SI prefix: `1.23 TB/s`, `45.6 µs`.
pub fn si(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 8] =
        [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")];
    let size = value.abs();
    let (factor, prefix) = match PREFIXES.into_iter().find(|(factor, _)| size >= *factor) {
        Some(found) => found,
        None if size == 0.0 => (1.0, ""),
        None => (1e-9, "n"),
    };
    format!("{} {prefix}{unit}", plain(value / factor))
}

/// Returns a share as a percentage, or a dash if it is not finite.
pub fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.0}%", share * 100.0) } else { "–".to_owned() }
}

/// Returns how many decimals show three significant digits.
pub fn decimals(value: f64) -> usize {
    if value == 0.0 { 0 } else { (2.0 - value.abs().log10().floor()).clamp(0.0, 9.0) as usize }
}

/// Returns a number for a table: one digit more than [`plain`], or a dash if it is not finite.
pub fn cell(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let decimals = if value == 0.0 { 0 } else { decimals(value / 10.0) };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_all_before_the_point() {
        for (value, text) in [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (1.0, "1.00"),
            (12.34, "12.3"),
            (123.4, "123"),
            (56789.1, "56789"),
        ] {
            assert_eq!(plain(value), text);
        }
    }

    #[test]
    fn cells_have_four_digits_or_all_before_the_point() {
        for (value, text) in
            [(0.0, "0"), (0.01234, "0.01234"), (12.345, "12.35"), (1234.5, "1234"), (f64::NAN, "–")]
        {
            assert_eq!(cell(value), text);
        }
    }

    #[test]
    fn prefixes_keep_quantities_between_one_and_a_thousand() {
        assert_eq!(si(2.63e12, "B/s"), "2.63 TB/s");
        assert_eq!(si(45.6e-6, "s"), "45.6 µs");
        assert_eq!(si(800e-9, "s"), "800 ns");
        assert_eq!(si(3.0e6, "B"), "3.00 MB");
        assert_eq!(si(0.0, "s"), "0 s");
        assert_eq!(si(-2e3, "B"), "-2.00 kB");
    }
}
