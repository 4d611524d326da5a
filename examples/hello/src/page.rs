//! The page: a template and the values that are put into it.

use crate::{facts::Snapshot, interledger::Answer};

const TEMPLATE: &str = include_str!("page.html");

pub(crate) fn render(facts: &Snapshot<'_>) -> String {
    let (dot, address, asset) = match &facts.interledger {
        Answer::Asking => ("", "asking …".to_owned(), String::new()),
        Answer::None { reason } => ("", "no Interledger".to_owned(), reason.clone()),
        Answer::Account {
            address,
            asset_code,
            asset_scale,
        } => (
            "good",
            address.clone(),
            format!("{asset_code}, scale {asset_scale}"),
        ),
    };
    let processors = if facts.processors == 1 {
        "1 processor".to_owned()
    } else {
        format!("{} processors", facts.processors)
    };
    fill(TEMPLATE, |name| match name {
        "name" => facts.name.to_owned(),
        "hash" => facts
            .manifest_hash
            .unwrap_or("not run by a host")
            .to_owned(),
        "host" => facts.host.unwrap_or("none").to_owned(),
        "kernel" => facts.kernel.to_owned(),
        "uptime" => facts
            .kernel_uptime_secs
            .map_or_else(|| "unknown".to_owned(), time),
        "memory" => facts
            .memory_limit_bytes
            .map_or_else(|| "unknown".to_owned(), mebibytes),
        "processors" => processors.clone(),
        "requests" => facts.requests.to_string(),
        "running" => time(facts.program_uptime_secs),
        "dot" => dot.to_owned(),
        "address" => address.clone(),
        "asset" => asset.clone(),
        _ => String::new(),
    })
}

/// Puts values, escaped, into the places `{{name}}`. What a value says is not looked at again.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut pieces = template.split("{{");
    let mut page = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once("}}").unwrap_or((piece, ""));
        escape(&value(name), &mut page);
        page.push_str(rest);
    }
    page
}

fn escape(text: &str, page: &mut String) {
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            _ => page.push(character),
        }
    }
}

fn time(seconds: u64) -> String {
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_not_read_as_templates() {
        let page = fill("<b>{{a}}</b>{{b}}", |name| format!("<{name}>&\"'{{{{b}}}}"));
        let value = |name| format!("&lt;{name}&gt;&amp;&quot;&#39;{{{{b}}}}");
        assert_eq!(page, format!("<b>{}</b>{}", value("a"), value("b")));
    }

    #[test]
    fn the_page_has_all_its_values() {
        let facts = Snapshot {
            name: "<script>",
            manifest_hash: Some("iqjw7i2v"),
            host: Some("http://host"),
            kernel: "6.1.0",
            kernel_uptime_secs: Some(61),
            program_uptime_secs: 7200,
            memory_limit_bytes: Some(512 << 20),
            processors: 1,
            interledger: Answer::Account {
                address: "private.x".to_owned(),
                asset_code: "XRP".to_owned(),
                asset_scale: 9,
            },
            requests: 42,
        };
        let page = render(&facts);
        for text in [
            "&lt;script&gt;",
            "iqjw7i2v",
            "http://host",
            "6.1.0",
            "1 min 1 s",
            "2 h 0 min",
            "512 MiB",
            "1 processor",
            "private.x",
            "XRP, scale 9",
            "42",
        ] {
            assert!(page.contains(text), "{text} is missing");
        }
        assert!(!page.contains("{{"), "a place without a value is left");
    }
}
