//! Amounts as people write them: whole units of an asset, with a fraction.

use codius_api::AssetInfo;

/// `units` of the smallest unit, written in whole units with the asset's code.
pub(crate) fn format(units: u64, asset: &AssetInfo) -> String {
    let scale = usize::from(asset.scale);
    let digits = format!("{units:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    match fraction.trim_end_matches('0') {
        "" => format!("{whole} {}", asset.code),
        fraction => format!("{whole}.{fraction} {}", asset.code),
    }
}

/// Whole units with a fraction, in smallest units; `None` if it is not a number, or finer or larger
/// than the asset has.
pub(crate) fn parse(text: &str, asset: &AssetInfo) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let scale = usize::from(asset.scale);
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty())
        || !all_digits(whole)
        || !all_digits(fraction)
        || fraction.len() > scale
    {
        return None;
    }
    format!("{whole}{fraction:0<scale$}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_both_ways() {
        let xrp = AssetInfo {
            code: "XRP".into(),
            scale: 9,
        };
        for (units, text) in [
            (0, "0"),
            (1, "0.000000001"),
            (2_283_106, "0.002283106"),
            (10_000_000_000, "10"),
        ] {
            assert_eq!(format(units, &xrp), format!("{text} XRP"));
            assert_eq!(parse(text, &xrp), Some(units));
        }
        assert_eq!(parse(".5", &xrp), Some(500_000_000));
        for text in [
            "",
            ".",
            "-1",
            "1e3",
            "0.0000000001",
            "1,5",
            "99999999999999999999",
        ] {
            assert_eq!(parse(text, &xrp), None, "{text}");
        }
        assert_eq!(
            format(
                7,
                &AssetInfo {
                    code: "JPY".into(),
                    scale: 0
                }
            ),
            "7 JPY"
        );
    }
}
