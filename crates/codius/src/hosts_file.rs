//! `codiushosts.json`: `{"hosts": ["https://host.example", …]}`, the hosts to upload to.

use std::path::Path;

use serde_json::Value;

use crate::{
    failure::{Failure, USAGE},
    project,
};

pub(crate) const HOSTS_FILE: &str = "codiushosts.json";

/// The hosts in a file, in its order.
pub(crate) fn read(file: &Path) -> Result<Vec<String>, Failure> {
    parse(&project::parse(file)?).ok_or_else(|| {
        Failure::new(USAGE, format!("{} is not a list of hosts", file.display()))
            .note(r#"Next: write {"hosts": ["https://host.example"]}."#)
    })
}

fn parse(content: &Value) -> Option<Vec<String>> {
    let hosts = content.get("hosts")?.as_array()?;
    let hosts: Option<Vec<_>> = hosts
        .iter()
        .map(|host| host.as_str().map(str::to_owned))
        .collect();
    hosts.filter(|hosts| !hosts.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_of_hosts_is_what_the_original_reads() {
        let two = json!({"hosts": ["https://a.example", "b.example"], "note": "mine"});
        assert_eq!(parse(&two).unwrap(), ["https://a.example", "b.example"]);
        for other in [
            json!({}),
            json!({"hosts": []}),
            json!({"hosts": [1]}),
            json!(["a"]),
        ] {
            assert_eq!(parse(&other), None, "{other}");
        }
    }
}
