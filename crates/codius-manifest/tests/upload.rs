//! What a host accepts and what it refuses, with which words.

use codius_manifest::{
    ErrorFamily, MAX_BODY_BYTES, MAX_ENVIRONMENT_STRING_BYTES, MachineName, ManifestError,
    ManifestVersion, RestartPolicy, Upload, hash_posted, quoted,
};
use serde_json::{Value, json};

/// An upload of one container; `manifest` and `container` add members to what must be there.
fn body(manifest: &str, container: &str) -> String {
    format!(
        r#"{{"manifest":{{"name":"n","version":"1","containers":[{{"id":"app","image":"i"{container}}}]{manifest}}}}}"#
    )
}

fn parse(body: &str) -> Result<Upload, ManifestError> {
    Upload::parse(body.as_bytes())
}

fn accepted(body: &str) -> Upload {
    parse(body).unwrap_or_else(|error| panic!("{body} was refused: {:?}", error.details()))
}

fn refused(body: &str) -> ManifestError {
    let Err(error) = parse(body) else {
        panic!("{body} was accepted")
    };
    for detail in error.details() {
        assert!(
            !detail.message.is_empty() && !detail.next_step.is_empty(),
            "{detail:?}"
        );
    }
    error
}

/// The path of the first fault of the schema.
fn schema_fault(body: &str) -> String {
    let error = refused(body);
    assert_eq!(error.family(), ErrorFamily::Schema, "{body}: {error:?}");
    assert_eq!(error.to_string(), "Invalid request payload input");
    error.details()[0].path.clone()
}

fn unprocessable(body: &str) -> String {
    let error = refused(body);
    assert_eq!(
        error.family(),
        ErrorFamily::Unprocessable,
        "{body}: {error:?}"
    );
    error.to_string()
}

#[test]
fn the_families_of_errors_have_the_statuses_of_the_original() {
    let long = "x".repeat(MAX_BODY_BYTES + 1);
    let cases = [
        (
            long.as_str(),
            413,
            "Payload content length greater than maximum allowed: 1048576",
        ),
        ("{", 400, "Invalid request payload JSON format"),
        ("{}", 400, "Invalid request payload input"),
    ];
    for (body, status, text) in cases {
        let error = refused(body);
        assert_eq!(error.family().http_status(), status);
        assert_eq!(error.to_string(), text);
    }
    let port = refused(&body(r#","port":"99999""#, ""));
    assert_eq!(port.family().http_status(), 422);
}

#[test]
fn a_body_of_exactly_the_limit_is_read() {
    let mut text = body("", "");
    text.push_str(&" ".repeat(MAX_BODY_BYTES - text.len()));
    accepted(&text);
    text.push(' ');
    assert_eq!(refused(&text).family(), ErrorFamily::TooLarge);
}

#[test]
fn what_is_not_json_is_malformed() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for text in [
        "",
        "{\"manifest\":",
        "nonsense",
        "\u{feff}{}",
        "{}{}",
        "{'a':1}",
        &deep,
    ] {
        assert_eq!(refused(text).family(), ErrorFamily::Malformed, "{text}");
    }
    let not_utf8 = Upload::parse(b"{\"manifest\":\"\xff\"}").unwrap_err();
    assert_eq!(not_utf8.family(), ErrorFamily::Malformed);
}

#[test]
fn half_surrogate_pairs_are_refused() {
    for escape in [
        r"\ud800",
        r"\uDFFF",
        r"\ud83dx",
        r"\ud83d\u0041",
        r"\udc00\ud800",
        r"\\\ud800",
    ] {
        let text = body(&format!(r#","vars":{{"a{escape}":{{"value":""}}}}"#), "");
        assert!(unprocessable(&text).contains("surrogate"), "{text}");
    }
    // Inside text that would be converted, too.
    let inner = json!({"manifest": r#"{"name":"\ud800"}"#}).to_string();
    assert!(unprocessable(&inner).contains("surrogate"));
    // A whole pair, and a backslash that only looks like the beginning of an escape.
    accepted(&body("", r#","command":["\ud83d\ude00","\\ud800"]"#));
}

#[test]
fn optional_fields_may_be_absent_and_text_may_be_empty() {
    let upload = accepted(
        r#"{"manifest":{"name":"","version":"","containers":[{"id":"","image":""}]},"private":{}}"#,
    );
    let manifest = upload.manifest();
    assert_eq!(
        (manifest.name(), manifest.version(), manifest.port()),
        ("", "", None)
    );
    assert_eq!(manifest.machine().as_str(), "small");
    assert!(!manifest.debug());
    assert!(upload.private().is_empty());
    assert_eq!(manifest.containers()[0].command, None);
}

/// The rows of the schema that accept, with the value that the hash is made over where it differs
/// from what was written. Verified with joi 13.3.0 and enjoi 3.2.3.
#[test]
fn the_schema_accepts_and_converts_as_the_original() {
    let same: &[(&str, &str)] = &[
        (r#","machine":"small""#, ""),
        (r#","debug":true"#, ""),
        (r#","vars":{}"#, ""),
        (r#","vars":{"":{"value":""}}"#, ""),
        (
            r#","vars":{"A":{"value":"x","encoding":"private:sha256"}}"#,
            "",
        ),
        ("", r#","command":[]"#),
        ("", r#","command":[" a ",""]"#),
        ("", r#","environment":{}"#),
        ("", r#","workdir":"""#),
    ];
    for (manifest, container) in same {
        let text = body(manifest, container);
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(accepted(&text).manifest().as_value(), &written["manifest"]);
    }
    let converted: &[(&str, &str, &str, &str)] = &[
        (r#","debug":"true""#, "", r#","debug":true"#, ""),
        (r#","debug":"FALSE""#, "", r#","debug":false"#, ""),
        (r#","vars":"{}""#, "", r#","vars":{}"#, ""),
        (
            r#","vars":{"A":"{\"value\":\"x\"}"}"#,
            "",
            r#","vars":{"A":{"value":"x"}}"#,
            "",
        ),
        ("", r#","command":" [\"a\"] ""#, "", r#","command":["a"]"#),
        (
            "",
            r#","environment":"{\"A\":\"b\",\"A\":\"c\"}""#,
            "",
            r#","environment":{"A":"c"}"#,
        ),
    ];
    for (manifest, container, manifest_after, container_after) in converted {
        let (written, meant) = (
            body(manifest, container),
            body(manifest_after, container_after),
        );
        assert_eq!(accepted(&written).manifest(), accepted(&meant).manifest());
        assert_eq!(
            hash_posted(written.as_bytes()).unwrap(),
            accepted(&meant).hash()
        );
    }
    // Whole parts as text.
    let manifest = r#"{"name":"n","version":"1","containers":[{"id":"app","image":"i"}]}"#;
    let containers = r#"[{"id":"app","image":"i"}]"#;
    let plain = accepted(&body("", ""));
    for text in [
        json!({"manifest": manifest}).to_string(),
        Value::from(json!({"manifest": manifest}).to_string()).to_string(),
        json!({"manifest": {"name": "n", "version": "1", "containers": containers}}).to_string(),
        json!({"manifest": {"name": "n", "version": "1", "containers": [r#"{"id":"app","image":"i"}"#]}})
            .to_string(),
    ] {
        assert_eq!(accepted(&text).manifest(), plain.manifest(), "{text}");
    }
}

/// Version 2 lets a container say when it is started again; it is part of the hash.
#[test]
fn a_restart_policy_is_for_version_2_alone() {
    let with = |restart: &str| {
        format!(
            r#"{{"manifest":{{"name":"n","version":"1","containers":[{{"id":"a","image":"i"{restart}}}]}}}}"#
        )
    };
    let plain = Upload::parse(with("").as_bytes()).unwrap();
    let always = with(r#","restart":"always""#);
    let refused = Upload::parse(always.as_bytes()).unwrap_err();
    assert_eq!(
        refused.details()[0].to_string(),
        "manifest.containers.0: \"restart\" is not allowed"
    );
    for (text, policy) in [
        ("no", RestartPolicy::No),
        ("on-failure", RestartPolicy::OnFailure),
        ("always", RestartPolicy::Always),
    ] {
        let body = with(&format!(r#","restart":"{text}""#));
        let upload = Upload::parse_as(ManifestVersion::V2, body.as_bytes()).unwrap();
        assert_ne!(upload.hash(), plain.hash());
        assert_eq!(upload.hash(), hash_posted(body.as_bytes()).unwrap());
        let spec = upload.pod_spec("http://h").unwrap();
        assert_eq!(spec.containers[0].restart, policy);
        // As the store keeps it.
        let kept = Upload::parse_as(ManifestVersion::V2, upload.to_json().as_bytes());
        assert_eq!(kept.unwrap(), upload);
    }
    let in_v2 = Upload::parse_as(ManifestVersion::V2, with("").as_bytes()).unwrap();
    assert_eq!(in_v2, plain);
    for wrong in ["\"\"", "\"Always\"", "\"unless-stopped\"", "null", "true"] {
        let body = with(&format!(r#","restart":{wrong}"#));
        let refused = Upload::parse_as(ManifestVersion::V2, body.as_bytes()).unwrap_err();
        assert_eq!(
            refused.details()[0].to_string(),
            "manifest.containers.0.restart: must be one of no, on-failure, always",
            "{wrong}"
        );
    }
}

/// Version 2 takes any size that has a name; that a host has it is not looked at here.
#[test]
fn a_size_beyond_small_is_for_version_2_alone() {
    let medium = body(r#","machine":"medium""#, "");
    let refused = Upload::parse(medium.as_bytes()).unwrap_err();
    assert_eq!(
        refused.details()[0].to_string(),
        "manifest.machine: must be \"small\""
    );
    let upload = Upload::parse_as(ManifestVersion::V2, medium.as_bytes()).unwrap();
    assert_eq!(upload.manifest().machine().as_str(), "medium");
    assert_eq!(upload.hash(), hash_posted(medium.as_bytes()).unwrap());
    let spec = upload.pod_spec("http://h").unwrap();
    assert_eq!(spec.machine, upload.manifest().machine());
    let quote = quoted(ManifestVersion::V2, medium.as_bytes(), "http://h").unwrap();
    assert_eq!(
        (quote.hash, quote.machine),
        (upload.hash(), upload.manifest().machine())
    );
    // Without one it is small in both, and the hash is that of version 1.
    let plain = body("", "");
    let in_v2 = Upload::parse_as(ManifestVersion::V2, plain.as_bytes()).unwrap();
    assert_eq!(in_v2, Upload::parse(plain.as_bytes()).unwrap());
    assert_eq!(in_v2.manifest().machine(), MachineName::SMALL);
    for wrong in ["\"\"", "\"BIG\"", "null", "1", "[\"medium\"]"] {
        let body = body(&format!(r#","machine":{wrong}"#), "");
        let refused = Upload::parse_as(ManifestVersion::V2, body.as_bytes()).unwrap_err();
        assert_eq!(refused.details()[0].path, "manifest.machine", "{wrong}");
    }
}

/// The rows of the schema that refuse, with the place of the fault.
#[test]
fn the_schema_refuses_as_the_original() {
    let cases: &[(&str, &str, &str)] = &[
        (r#","port":80"#, "", "manifest.port"),
        (r#","port":"0""#, "", "manifest.port"),
        (r#","port":"abc""#, "", "manifest.port"),
        (r#","port":null"#, "", "manifest.port"),
        (r#","machine":"big""#, "", "manifest.machine"),
        (r#","machine":null"#, "", "manifest.machine"),
        (r#","debug":"yes""#, "", "manifest.debug"),
        (r#","debug":" true""#, "", "manifest.debug"),
        (r#","debug":1"#, "", "manifest.debug"),
        (r#","debug":null"#, "", "manifest.debug"),
        (r#","vars":null"#, "", "manifest.vars"),
        (r#","vars":[]"#, "", "manifest.vars"),
        (r#","vars":{"A":{}}"#, "", "manifest.vars.A.value"),
        (r#","vars":{"A":{"value":1}}"#, "", "manifest.vars.A.value"),
        (
            r#","vars":{"A":{"value":"x","encoding":"sha"}}"#,
            "",
            "manifest.vars.A.encoding",
        ),
        (
            r#","vars":{"A":{"value":"x","description":"d"}}"#,
            "",
            "manifest.vars.A",
        ),
        (
            r#","vars":{"__proto__":{"value":"x"}}"#,
            "",
            "manifest.vars",
        ),
        (r#","other":1"#, "", "manifest"),
        ("", r#","other":1"#, "manifest.containers.0"),
        ("", r#","command":"a""#, "manifest.containers.0.command"),
        ("", r#","command":"{}""#, "manifest.containers.0.command"),
        (
            "",
            r#","command":{"0":"a"}"#,
            "manifest.containers.0.command",
        ),
        (
            "",
            r#","command":["a",1]"#,
            "manifest.containers.0.command.1",
        ),
        (
            "",
            r#","command":["a",null]"#,
            "manifest.containers.0.command.1",
        ),
        (
            "",
            r#","environment":[]"#,
            "manifest.containers.0.environment",
        ),
        (
            "",
            r#","environment":"[]""#,
            "manifest.containers.0.environment",
        ),
        (
            "",
            r#","environment":"""#,
            "manifest.containers.0.environment",
        ),
        (
            "",
            r#","environment":null"#,
            "manifest.containers.0.environment",
        ),
        (
            "",
            r#","environment":{"A":1}"#,
            "manifest.containers.0.environment.A",
        ),
        ("", r#","workdir":null"#, "manifest.containers.0.workdir"),
    ];
    for (manifest, container, path) in cases {
        assert_eq!(
            schema_fault(&body(manifest, container)),
            *path,
            "{manifest}{container}"
        );
    }
    let whole = [
        ("[]", ""),
        ("null", ""),
        ("1", ""),
        (r#""""#, ""),
        ("{}", "manifest"),
        (r#""{}""#, "manifest"),
        (r#"{"manifest":null}"#, "manifest"),
        (r#"{"manifest":""}"#, "manifest"),
        (r#"{"manifest":{}}"#, "manifest.name"),
        (
            r#"{"manifest":{"name":1,"version":"","containers":[{"id":"","image":""}]}}"#,
            "manifest.name",
        ),
        (
            r#"{"manifest":{"name":"","version":""}}"#,
            "manifest.containers",
        ),
        (
            r#"{"manifest":{"name":"","version":"","containers":[]}}"#,
            "manifest.containers",
        ),
        (
            r#"{"manifest":{"name":"","version":"","containers":"[]"}}"#,
            "manifest.containers",
        ),
        (
            r#"{"manifest":{"name":"","version":"","containers":{}}}"#,
            "manifest.containers",
        ),
        (
            r#"{"manifest":{"name":"","version":"","containers":[null]}}"#,
            "manifest.containers.0",
        ),
        (
            r#"{"manifest":{"name":"","version":"","containers":[{"id":""}]}}"#,
            "manifest.containers.0.image",
        ),
    ];
    for (text, path) in whole {
        assert_eq!(schema_fault(text), path, "{text}");
    }
    let private = [
        ("null", "private"),
        ("[]", "private"),
        (r#""""#, "private"),
        (r#"{"x":1}"#, "private"),
        (r#"{"vars":null}"#, "private.vars"),
        (r#"{"vars":{"A":{"value":"2"}}}"#, "private.vars.A.nonce"),
        (r#"{"vars":{"A":{"nonce":"1"}}}"#, "private.vars.A.value"),
        (
            r#"{"vars":{"A":{"nonce":"1","value":"2","z":1}}}"#,
            "private.vars.A",
        ),
    ];
    for (private, path) in private {
        let text = body("", "").replacen('{', &format!(r#"{{"private":{private},"#), 1);
        assert_eq!(schema_fault(&text), path, "{text}");
    }
}

#[test]
fn all_faults_are_reported_but_not_without_end() {
    let error = refused(r#"{"manifest":{"version":1,"x":2}}"#);
    let paths: Vec<_> = error
        .details()
        .iter()
        .map(|one| one.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            "manifest.name",
            "manifest.version",
            "manifest.containers",
            "manifest"
        ]
    );

    let key = "k".repeat(100_000);
    let many = format!(r#","vars":{{"{key}":{{"a":1,"value":1}}}}"#);
    let numbers = vec!["1"; 10_000].join(",");
    let error = refused(&body(&many, &format!(r#","command":[{numbers}]"#)));
    assert_eq!(error.details().len(), 32);
    let report: usize = error
        .details()
        .iter()
        .map(|one| one.path.len() + one.message.len())
        .sum();
    assert!(report < 10_000, "{report}");
}

#[test]
fn the_port_is_what_javascript_would_connect_to() {
    let ports = [
        ("80", 80),
        (" 8080", 8080),
        ("65535", 65535),
        ("0x50", 80),
        ("8e1", 80),
        ("+80", 80),
        ("80.0", 80),
        ("\u{feff}1\u{a0}", 1),
        ("0b1", 1),
        ("080", 80),
        ("1.", 1),
        ("00080", 80),
    ];
    for (text, port) in ports {
        let upload = accepted(&body(&format!(r#","port":"{text}""#), ""));
        assert_eq!(upload.manifest().port(), Some(port), "{text}");
        assert_eq!(upload.pod_spec("http://h").unwrap().port, Some(port));
        assert_eq!(
            upload.manifest().as_value()["port"],
            text,
            "the text is what is hashed"
        );
    }
    for text in [
        "", "a1b", "99999", "65536", "-1", "80.5", "1_0", "0x", "1e9", "-0x50", "8 0", "1n",
    ] {
        let message = unprocessable_or_schema(&body(&format!(r#","port":"{text}""#), ""));
        assert!(message.contains("port"), "{text}: {message}");
    }
}

/// `0x` has no digit from 1 to 9, so that already the schema refuses it.
fn unprocessable_or_schema(body: &str) -> String {
    let error = refused(body);
    assert!(matches!(
        error.family(),
        ErrorFamily::Schema | ErrorFamily::Unprocessable
    ));
    error.details()[0].to_string()
}

#[test]
fn the_last_of_equal_members_counts() {
    let upload = accepted(&body(
        r#","port":"1","port":"2""#,
        r#","environment":{"A":"1","B":"2","A":"3"}"#,
    ));
    assert_eq!(upload.manifest().port(), Some(2));
    let env = &upload.manifest().containers()[0].environment;
    assert_eq!(
        env,
        &[
            ("A".to_owned(), "3".to_owned()),
            ("B".to_owned(), "2".to_owned())
        ]
    );
    // What does not count is not checked either.
    accepted(&body(r#","port":80,"port":"80""#, ""));
}

#[test]
fn containers_are_bounded_and_have_ids_of_their_own() {
    let containers = |count: usize| {
        let list: Vec<_> = (0..count)
            .map(|id| format!(r#"{{"id":"{id}","image":"i"}}"#))
            .collect();
        format!(
            r#"{{"manifest":{{"name":"","version":"","containers":[{}]}}}}"#,
            list.join(",")
        )
    };
    assert_eq!(accepted(&containers(16)).manifest().containers().len(), 16);
    assert_eq!(
        unprocessable(&containers(17)),
        "17 containers are more than the 16 of a pod"
    );
    let same = containers(2).replace(r#""id":"1""#, r#""id":"0""#);
    assert_eq!(unprocessable(&same), "container ids must be unique. id=0");
    assert_eq!(refused(&same).details()[0].path, "manifest.containers.1.id");
    for id in ["a\\nb", &"x".repeat(129)] {
        unprocessable(&containers(1).replace(r#""id":"0""#, &format!(r#""id":"{id}""#)));
    }
}

#[test]
fn variables_are_refused_with_the_words_of_the_original() {
    let cases = [
        (
            "",
            r#""CODIUS_X":"1""#,
            r#"environment variables starting in "CODIUS" are reserved. var=CODIUS_X"#,
        ),
        (
            "",
            r#""A":"$X""#,
            "could not interpolate var. var=$X manifest.vars=undefined",
        ),
        (
            r#","vars":{"Y":{"value":"é"},"2":{"value":"b"},"1":{"value":"a"}}"#,
            r#""A":"$X""#,
            r#"could not interpolate var. var=$X manifest.vars={"1":{"value":"a"},"2":{"value":"b"},"Y":{"value":"é"}}"#,
        ),
        // A name that every JavaScript object seems to have.
        (
            r#","vars":{}"#,
            r#""A":"$toString""#,
            "could not interpolate var. var=$toString manifest.vars={}",
        ),
        (
            r#","vars":{"x":{"value":"1"}}"#,
            r#""A":"$$x""#,
            r#"could not interpolate var. var=$$x manifest.vars={"x":{"value":"1"}}"#,
        ),
        (
            r#","vars":{"X":{"value":"ab","encoding":"private:sha256"}}"#,
            r#""A":"$X""#,
            r#"could not interpolate private var. var=$X manifest.vars={"X":{"value":"ab","encoding":"private:sha256"}}"#,
        ),
    ];
    for (manifest, environment, text) in cases {
        let body = body(manifest, &format!(r#","environment":{{{environment}}}"#));
        assert_eq!(unprocessable(&body), text);
        assert!(
            refused(&body).details()[0]
                .path
                .starts_with("manifest.containers.0.environment.")
        );
    }
    let wrong = r#"{"manifest":{"name":"n","version":"1","containers":[{"id":"app","image":"i",
        "environment":{"A":"$X"}}],"vars":{"X":{"value":"ab","encoding":"private:sha256"}}},
        "private":{"vars":{"X":{"nonce":"123450325","value":"AKRTP2SB9AF5TQQ1N1BC"}}}}"#;
    assert_eq!(
        unprocessable(wrong),
        "private var does not match hash. var=$X encoding=private:sha256 public-hash=ab \
         hashed-value=95b3449d5b13a4e60e5c0218021354c447907d1762bb410ba8d776bfaa1a3faf"
    );
}

/// The first host answered 500 to a quote without `private`, which is what its own tool sends when it
/// extends a pod by its hash.
#[test]
fn a_price_can_be_asked_without_private_values_but_not_with_wrong_ones() {
    let private = |private: &str| {
        let manifest = body(
            r#","vars":{"X":{"value":"ab","encoding":"private:sha256"}}"#,
            r#","environment":{"A":"$X"}"#,
        );
        manifest.replacen('{', &format!("{{{private}"), 1)
    };
    let quote =
        |body: &str| quoted(ManifestVersion::V1, body.as_bytes(), "http://h").map(|it| it.hash);
    let kept_back = private("");
    assert_eq!(
        quote(&kept_back).unwrap(),
        hash_posted(kept_back.as_bytes()).unwrap()
    );
    for wrong in [
        r#""private":{},"#,
        r#""private":{"vars":{"X":{"nonce":"1","value":"2"}}},"#,
    ] {
        let told = refused(&private(wrong));
        assert_eq!(quote(&private(wrong)).unwrap_err(), told);
    }
    unprocessable(&kept_back);
    // All else is looked at.
    for wrong in [
        body(r#","port":"99999""#, ""),
        body("", r#","environment":{"A":"$X"}"#),
    ] {
        assert_eq!(quote(&wrong).unwrap_err(), refused(&wrong));
    }
}

#[test]
fn the_first_fault_in_enumeration_order_is_the_one_that_is_told() {
    let text = unprocessable(&body(
        "",
        r#","environment":{"CODIUS":"1","A":"$X","1":"$Y"}"#,
    ));
    assert_eq!(
        text,
        "could not interpolate var. var=$Y manifest.vars=undefined"
    );
}

#[test]
fn the_environment_is_that_of_the_original_in_its_order() {
    let manifest = r#"{"name":"n","version":"1","port":"80","containers":[{"id":"app","image":"i","environment":{"B":"$PUBLIC","10":"ten","A":"$PRIVATE","9":"nine","C":"a$PUBLIC","D":""}}],"vars":{"PUBLIC":{"value":"$PRIVATE"},"PRIVATE":{"encoding":"private:sha256","value":"95b3449d5b13a4e60e5c0218021354c447907d1762bb410ba8d776bfaa1a3faf"}}}"#;
    let body = format!(
        r#"{{"private":{{"vars":{{"PRIVATE":{{"value":"AKRTP2SB9AF5TQQ1N1BC","nonce":"123450325"}}}}}},"manifest":{manifest}}}"#
    );
    let upload = accepted(&body);
    let spec = upload.pod_spec("https://host.example").unwrap();
    let hash = upload.hash().to_string();
    // As `JSON.stringify` prints the manifest: as written, but for the integer-like names.
    let stringified = manifest.replace(
        r#""B":"$PUBLIC","10":"ten","A":"$PRIVATE","9":"nine","#,
        r#""9":"nine","10":"ten","B":"$PUBLIC","A":"$PRIVATE","#,
    );
    let expected = [
        ("CODIUS", "true"),
        ("CODIUS_HOST", "https://host.example"),
        ("CODIUS_MANIFEST_HASH", hash.as_str()),
        ("CODIUS_MANIFEST", stringified.as_str()),
        ("9", "nine"),
        ("10", "ten"),
        ("B", "$PRIVATE"),
        ("A", "AKRTP2SB9AF5TQQ1N1BC"),
        ("C", "a$PUBLIC"),
        ("D", ""),
    ];
    let env: Vec<_> = spec.containers[0]
        .env
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    assert_eq!(env, expected);
    assert_eq!(spec.hash, upload.hash());
    assert_eq!(
        (spec.name.as_str(), spec.version.as_str(), spec.port),
        ("n", "1", Some(80))
    );
}

#[test]
fn private_values_are_not_shown_by_debug() {
    let body = r#"{"manifest":{"name":"n","version":"1","containers":[{"id":"app","image":"i",
        "environment":{"A":"$X"}}],"vars":{"X":{"encoding":"private:sha256",
        "value":"95b3449d5b13a4e60e5c0218021354c447907d1762bb410ba8d776bfaa1a3faf"}}},
        "private":{"vars":{"X":{"nonce":"123450325","value":"AKRTP2SB9AF5TQQ1N1BC"}}}}"#;
    let upload = accepted(body);
    let spec = upload.pod_spec("http://h").unwrap();
    for shown in [
        format!("{upload:#?}"),
        format!("{spec:?}"),
        format!("{:?}", upload.private()),
    ] {
        assert!(!shown.contains("AKRTP2SB9AF5TQQ1N1BC"), "{shown}");
        assert!(!shown.contains("123450325"), "{shown}");
    }
    assert!(
        spec.containers[0]
            .env
            .iter()
            .any(|(_, value)| value == "AKRTP2SB9AF5TQQ1N1BC")
    );
    // But what the host keeps is complete.
    assert_eq!(accepted(&upload.to_json()), upload);
}

#[test]
fn what_a_process_cannot_be_given_is_refused_before_it_is_made() {
    assert!(unprocessable(&body("", r#","command":["a\u0000b"]"#)).contains("zero byte"));
    assert!(unprocessable(&body("", r#","workdir":"\u0000""#)).contains("zero byte"));
    assert!(unprocessable(&body("", r#","environment":{"A":"\u0000"}"#)).contains("zero byte"));
    for name in ["", "A=B", "A\\u0000"] {
        let text = body("", &format!(r#","environment":{{"{name}":"1"}}"#));
        assert!(unprocessable(&text).contains("name without"), "{text}");
    }
    // The manifest itself is a variable of the environment.
    let long = "x".repeat(MAX_ENVIRONMENT_STRING_BYTES - 150);
    accepted(&body(
        &format!(r#","vars":{{"L":{{"value":"{long}"}}}}"#),
        "",
    ));
    let long = "x".repeat(MAX_ENVIRONMENT_STRING_BYTES);
    let text = body(&format!(r#","vars":{{"L":{{"value":"{long}"}}}}"#), "");
    assert!(unprocessable(&text).contains("CODIUS_MANIFEST is one"));
    // A short manifest must not become an endless environment.
    let value = "x".repeat(100_000);
    let uses: Vec<_> = (0..1000).map(|n| format!(r#""A{n}":"$L""#)).collect();
    let text = body(
        &format!(r#","vars":{{"L":{{"value":"{value}"}}}}"#),
        &format!(r#","environment":{{{}}}"#, uses.join(",")),
    );
    assert!(unprocessable(&text).contains("exceed 1048576 bytes"));
    let error = accepted(&body("", "")).pod_spec(&long).unwrap_err();
    assert_eq!(error.details()[0].path, "CODIUS_HOST");
}

#[test]
fn documents_that_a_host_refuses_have_a_hash_but_not_without_a_manifest() {
    let hash = hash_posted(br#"{"manifest":{}}"#).unwrap();
    assert_eq!(
        hash.to_string(),
        "iqjw7i2vwntyuekgvulpp2det2kpwt6cd7tx5ayqybqpmhfk76fa"
    );
    assert_eq!(
        hash_posted(b"{}").unwrap_err().details()[0].path,
        "manifest"
    );
    assert_eq!(
        hash_posted(b"[]").unwrap_err().family(),
        ErrorFamily::Schema
    );
    assert_eq!(
        hash_posted(b"").unwrap_err().family(),
        ErrorFamily::Malformed
    );
}
