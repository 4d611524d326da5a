//! The habits of JavaScript that the manifest format has inherited.

use serde_json::{Map, Number, Value};

/// The number that an object key stands for if JavaScript takes it for an array index: the decimal
/// text of an integer from 0 to 2³² − 2 without leading zeros (ECMA-262, "array index").
pub fn array_index(key: &str) -> Option<u32> {
    let canonical =
        key == "0" || (!key.starts_with('0') && key.bytes().all(|b| b.is_ascii_digit()));
    if key.is_empty() || !canonical {
        return None;
    }
    key.parse().ok().filter(|index| *index != u32::MAX)
}

/// Puts the members of every object into the order in which JavaScript enumerates them: array
/// indices ascending, then all others as they were inserted (ECMA-262, `OrdinaryOwnPropertyKeys`).
pub fn enumeration_order(value: &mut Value) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        Value::Array(items) => items.iter_mut().for_each(enumeration_order),
        Value::Object(members) => {
            members.values_mut().for_each(enumeration_order);
            if members.keys().any(|key| array_index(key).is_some()) {
                reorder(members);
            }
        }
    }
}

fn reorder(members: &mut Map<String, Value>) {
    let (mut indices, others): (Vec<_>, Vec<_>) = std::mem::take(members)
        .into_iter()
        .map(|(key, value)| (array_index(&key), key, value))
        .partition(|(index, ..)| index.is_some());
    indices.sort_by_key(|(index, ..)| *index);
    members.extend(
        indices
            .into_iter()
            .chain(others)
            .map(|(_, key, value)| (key, value)),
    );
}

/// `JSON.stringify(value)`: no spaces, members as [`enumeration_order`] has left them.
pub fn stringify(value: &Value) -> String {
    // serde_json escapes exactly what ECMA-262 `QuoteJSONString` does for well-formed text: the two
    // quotes of JSON, the five short forms, and other control characters as \u00xx in lower case.
    // Only numbers are printed in another way.
    let mut text = String::new();
    write_json(value, &mut text, &mut |string, out| {
        out.push_str(&Value::from(string).to_string());
    });
    text
}

/// Writes JSON without spaces, with strings as `quote` writes them, and members as they come.
pub(crate) fn write_json(
    value: &Value,
    out: &mut String,
    quote: &mut impl FnMut(&str, &mut String),
) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => {
            out.push_str(&number_to_string(number.as_f64().unwrap_or(f64::NAN)));
        }
        Value::String(string) => quote(string, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_json(item, out, quote);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (index, (key, member)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                quote(key, out);
                out.push(':');
                write_json(member, out, quote);
            }
            out.push('}');
        }
    }
}

/// `String(number)` (ECMA-262, `Number::toString`), and `null` for what JSON has no number for.
pub fn number_to_string(number: f64) -> String {
    let Some(shortest) = Number::from_f64(number) else {
        return "null".to_owned();
    };
    if number == 0.0 {
        return "0".to_owned(); // Negative zero too.
    }
    // ECMA-262 wants the fewest digits that read back as the same number, of those the nearest, and
    // JavaScript engines take the even one of two that are as near (1673612244506273.25 ends in
    // 273.2). serde_json does the same; `{:e}` of the standard library takes the other one.
    let text = shortest.to_string();
    let (sign, text) = text
        .strip_prefix('-')
        .map_or(("", &*text), |rest| ("-", rest));
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let significant = all.trim_start_matches('0');
    let length = |text: &str| i32::try_from(text.len()).unwrap_or(i32::MAX);
    // The value is 0.DIGITS × 10^point.
    let point =
        exponent.parse::<i32>().unwrap_or(0) + length(whole) - length(&all) + length(significant);
    let digits = significant.trim_end_matches('0');
    let count = length(digits);
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or(0));
    let split = usize::try_from(point).unwrap_or(0);
    if (count..=21).contains(&point) {
        format!("{sign}{digits}{}", zeros(point - count))
    } else if (1..=21).contains(&point) {
        format!("{sign}{}.{}", &digits[..split], &digits[split..])
    } else if (-5..=0).contains(&point) {
        format!("{sign}0.{}{digits}", zeros(-point))
    } else {
        let (first, rest) = digits.split_at(1);
        let dot = if rest.is_empty() { "" } else { "." };
        let plus = if point > 0 { "+" } else { "" };
        format!("{sign}{first}{dot}{rest}e{plus}{}", point - 1)
    }
}

/// `Number(text)` (ECMA-262, `StringToNumber`); `None` for `NaN`.
pub fn number(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_white_space);
    if text.is_empty() {
        return Some(0.0);
    }
    let radix = text.get(..2).and_then(|prefix| match prefix {
        "0x" | "0X" => Some(16),
        "0o" | "0O" => Some(8),
        "0b" | "0B" => Some(2),
        _ => None,
    });
    if let Some(radix) = radix {
        return radix_number(&text[2..], radix);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if unsigned == "Infinity" {
        return Some(if text.starts_with('-') {
            f64::NEG_INFINITY
        } else {
            f64::INFINITY
        });
    }
    // Rust reads "inf" and "nan" in any case as well; JavaScript wants a digit in every number.
    let plain = unsigned
        .bytes()
        .all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if !plain || !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.parse().ok()
}

fn radix_number(digits: &str, radix: u32) -> Option<f64> {
    if digits.is_empty() {
        return None;
    }
    digits.chars().try_fold(0.0, |sum, digit| {
        Some(sum * f64::from(radix) + f64::from(digit.to_digit(radix)?))
    })
}

/// ECMA-262 `WhiteSpace` and `LineTerminator`.
fn is_white_space(character: char) -> bool {
    matches!(
        character,
        '\u{9}'..='\u{d}' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{2028}'
            | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{3000}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_ecma_262_says() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-20.0, "-20"),
            (123.456, "123.456"),
            (1e20, "100000000000000000000"),
            (123_456_789_012_345_680_000.0, "123456789012345680000"),
            (1e21, "1e+21"),
            (1.5e300, "1.5e+300"),
            (0.000_001, "0.000001"),
            (0.000_012, "0.000012"),
            (1e-7, "1e-7"),
            (-1.5e-7, "-1.5e-7"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (-6_694_448_978_025_093.0 / 4.0, "-1673612244506273.2"),
            (f64::INFINITY, "null"),
            (f64::NAN, "null"),
        ];
        for (number, text) in cases {
            assert_eq!(number_to_string(number), text);
        }
    }

    #[test]
    fn text_is_read_as_a_number_as_by_javascript() {
        let cases = [
            ("", Some(0.0)),
            (" \u{feff}\n", Some(0.0)),
            ("80", Some(80.0)),
            ("\u{2003}80\u{2029}", Some(80.0)),
            ("-1.5e1", Some(-15.0)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("0x1F", Some(31.0)),
            ("0o17", Some(15.0)),
            ("0B11", Some(3.0)),
            ("-Infinity", Some(f64::NEG_INFINITY)),
            ("1e999", Some(f64::INFINITY)),
            (".", None),
            ("+", None),
            ("e5", None),
            ("1e", None),
            ("--1", None),
            ("-0x1", None),
            ("0x", None),
            ("0x+1", None),
            ("0b2", None),
            ("inf", None),
            ("NaN", None),
            ("1_000", None),
            ("\u{200b}1", None),
            ("１", None),
        ];
        for (text, value) in cases {
            assert_eq!(number(text), value, "{text:?}");
        }
    }

    #[test]
    fn array_indices_come_first_and_only_they() {
        let keys = [
            "b",
            "4294967295",
            "4294967294",
            "01",
            "1",
            "-1",
            "0",
            "",
            "a",
        ];
        let mut value: Value = keys
            .iter()
            .map(|key| ((*key).to_owned(), Value::Null))
            .collect();
        enumeration_order(&mut value);
        let ordered: Vec<_> = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            ordered,
            [
                "0",
                "1",
                "4294967294",
                "b",
                "4294967295",
                "01",
                "-1",
                "",
                "a"
            ]
        );
    }
}
