//! What the `codius` tool makes of the files that people write, and what it reports.

use codius_manifest::{
    FieldError,
    source::{Generated, generate, is_pinned},
    validate_generated,
};
use serde_json::{Value, json};

const DIGEST: &str = "sha256:3e2ffcf0edca2a4e9b24ca442d227baea7b7f0e33ad654ef1eb806fbd9bedcf0";

fn generated(codius: &Value, vars: Option<&Value>) -> Result<Generated, Vec<FieldError>> {
    let mut count = 0;
    generate(codius, vars, &mut |_, _| {
        count += 1;
        format!("nonce {count}")
    })
}

/// Path and message of each error.
fn pairs(errors: &[FieldError]) -> Vec<(&str, &str)> {
    errors
        .iter()
        .map(|error| (error.path.as_str(), error.message.as_str()))
        .collect()
}

/// A posted document with one container of this environment.
fn document(environment: Value, vars: Option<Value>, private: Option<Value>) -> Value {
    let mut document = json!({"manifest": {"name": "n", "version": "1",
        "containers": [{"id": "app", "image": "i", "environment": environment}]}});
    if let Some(vars) = vars {
        document["manifest"]["vars"] = vars;
    }
    if let Some(private) = private {
        document["private"] = private;
    }
    document
}

fn encoded(hash: &str) -> Value {
    json!({"encoding": "private:sha256", "value": hash})
}

const HASH: &str = "95b3449d5b13a4e60e5c0218021354c447907d1762bb410ba8d776bfaa1a3faf";

fn private_x() -> Value {
    json!({"vars": {"X": {"nonce": "123450325", "value": "AKRTP2SB9AF5TQQ1N1BC"}}})
}

/// The example of the npm package codius-manifest 2.2.3 (`test/mocks`), whose nonce is "123450325".
#[test]
fn the_files_of_the_original_become_its_manifest() {
    let container = json!({"id": "app", "image": format!("hello-world@{DIGEST}"),
        "command": ["/bin/sh"], "workdir": "/root",
        "environment": {"AWS_ACCESS_KEY": "$AWS_ACCESS_KEY", "AWS_SECRET_KEY": "$AWS_SECRET_KEY"}});
    let codius = json!({"manifest": {"name": "my-codius-pod", "version": "1.0.0", "machine": "small",
        "containers": [container], "vars": {"AWS_ACCESS_KEY": {"value": "old", "description": "key"}}}});
    let vars = json!({"vars": {"public": {"AWS_ACCESS_KEY": {"value": "AKRTP2SB9AF5TQQ1N1BB"}},
        "private": {"AWS_SECRET_KEY": {"value": "AKRTP2SB9AF5TQQ1N1BC"}}}});
    let made = generate(&codius, Some(&vars), &mut |_, _| "123450325".to_owned()).unwrap();
    assert_eq!(
        made.manifest()["vars"],
        json!({"AWS_ACCESS_KEY": {"value": "AKRTP2SB9AF5TQQ1N1BB"}, "AWS_SECRET_KEY": encoded(HASH)})
    );
    assert_eq!(
        made.document()["private"],
        json!({"vars": {"AWS_SECRET_KEY": {"value": "AKRTP2SB9AF5TQQ1N1BC", "nonce": "123450325"}}})
    );
    assert!(!format!("{made:?}").contains("AKRTP2SB9AF5TQQ1N1BC"));
    let posted = codius_manifest::Upload::parse(made.to_json().as_bytes()).unwrap();
    assert_eq!(posted.hash(), made.hash());
}

#[test]
fn a_nonce_may_follow_from_name_and_value() {
    let codius = json!({"manifest": {"name": "n", "version": "1", "containers": [
        {"id": "app", "image": format!("i@{DIGEST}"), "environment": {"A": "$A"}}]}});
    let vars = json!({"vars": {"private": {"A": {"value": "secret"}}}});
    let mut asked = Vec::new();
    let made = generate(&codius, Some(&vars), &mut |name, value| {
        asked.push(format!("{name}={value}"));
        "nonce".to_owned()
    });
    made.unwrap();
    assert_eq!(asked, ["A=secret"]);
}

#[test]
fn hosts_are_added_to_every_container_once() {
    let codius = json!({"manifest": {"name": "n", "version": "1", "containers": [
        {"id": "a", "image": format!("i@{DIGEST}"), "environment": {"X": "1"}},
        {"id": "b", "image": format!("i@{DIGEST}")}]}});
    let mut made = generated(&codius, None).unwrap();
    let before = made.hash();
    let hosts = [
        "https://one.example".to_owned(),
        "https://two.example".to_owned(),
    ];
    assert_eq!(made.add_hosts(&hosts), Some(()));
    let text = r#"["https://one.example","https://two.example"]"#;
    assert_eq!(
        made.manifest()["containers"][0]["environment"],
        json!({"X": "1", "HOSTS": text})
    );
    assert_eq!(
        made.manifest()["containers"][1]["environment"],
        json!({"HOSTS": text})
    );
    assert_ne!(made.hash(), before);
    assert_eq!(made.add_hosts(&hosts), None, "HOSTS is there already");
}

#[test]
fn each_private_variable_gets_a_nonce_of_its_own() {
    let codius = document(json!({"A": "$A", "B": "$B"}), None, None);
    let vars = json!({"vars": {"private": {"B": {"value": "1"}, "A": {"value": "1"}}}});
    let made = generated(&codius, Some(&vars)).unwrap();
    let nonce = |name: &str| made.document()["private"]["vars"][name]["nonce"].clone();
    assert_eq!(
        (nonce("B"), nonce("A")),
        ("nonce 1".into(), "nonce 2".into())
    );
    assert_ne!(made.manifest()["vars"]["A"], made.manifest()["vars"]["B"]);
}

#[test]
fn what_is_empty_is_left_out_and_what_hosts_need_is_added() {
    let codius = document(json!({}), None, None);
    let made = generated(&codius, Some(&json!({"vars": {}}))).unwrap();
    assert_eq!(made.manifest()["containers"][0].get("environment"), None);
    assert_eq!(made.document().get("private"), None);

    let vars =
        json!({"X": {"value": "1", "description": "d"}, "Y": {"value": "2", "description": ""}});
    let codius = document(json!({"X": "$X", "Y": "$Y"}), Some(vars), None);
    let made = generated(&codius, None).unwrap();
    assert_eq!(
        made.manifest()["vars"],
        json!({"X": {"value": "1"}, "Y": {"value": "2", "description": ""}})
    );
    assert_eq!(
        made.document()["private"],
        json!({}),
        "hosts of version 1 fail without it"
    );
}

#[test]
fn images_are_pinned_by_the_caller() {
    let mut codius = document(json!({}), None, None);
    let pinned = format!("registry.example:5000/a/b@{DIGEST}");
    codius["manifest"]["containers"] =
        json!([{"id": "a", "image": pinned}, {"id": "b", "image": "nginx:1"}]);
    let mut made = generated(&codius, None).unwrap();
    let before = made.hash();
    assert_eq!(made.unpinned_images(), [(1, "nginx:1".to_owned())]);
    made.pin(1, &format!("nginx@{DIGEST}"));
    made.pin(7, "nobody");
    assert!(made.unpinned_images().is_empty());
    assert_ne!(made.hash(), before);
    made.set_debug();
    assert_eq!(made.manifest()["debug"], true);

    assert!(is_pinned(&format!("a:tag@{DIGEST}")));
    for image in [
        "nginx",
        DIGEST,
        &format!("@{DIGEST}"),
        &format!("a@{DIGEST}0"),
        &format!("a@{}", &DIGEST[..70]),
    ] {
        assert!(!is_pinned(image), "{image}");
    }
}

#[test]
fn faults_of_the_files_are_reported_first_and_alone() {
    let good = document(json!({}), None, None);
    let cases = [
        (json!({}), json!({"vars": {}}), "manifest"),
        (json!([]), json!({"vars": {}}), ""),
        (
            json!({"manifest": {"name": "n", "version": "1"}}),
            json!({}),
            "manifest.containers",
        ),
        (good.clone(), json!({}), "vars"),
        (good.clone(), json!({"vars": {}, "more": 1}), ""),
        (
            good.clone(),
            json!({"vars": {"private": {"X": {"value": "1", "nonce": "2"}}}}),
            "vars.private.X",
        ),
        (
            good.clone(),
            json!({"vars": {"public": {"X": {}}}}),
            "vars.public.X.value",
        ),
    ];
    for (codius, vars, path) in cases {
        let errors = generated(&codius, Some(&vars)).unwrap_err();
        assert_eq!(
            errors
                .iter()
                .map(|error| error.path.as_str())
                .collect::<Vec<_>>(),
            [path]
        );
    }
    // The original lets these pass, because its schemas have the rule at the wrong place.
    let mut more = good;
    more["other"] = 1.into();
    generated(&more, Some(&json!({"vars": {"other": 1}}))).unwrap();
}

#[test]
fn faults_of_the_schema_have_the_words_of_the_original() {
    let document = json!({"manifest": {"name": 1, "version": "1", "port": "0", "machine": "big",
        "containers": [{"id": "a", "x\"y": 1}], "debug": "true"}, "private": {"vars": {"A": {}}}});
    let errors = validate_generated(&document);
    let expected = [
        ("manifest.name", "'path':'manifest.name','keyword':'type'"),
        (
            "manifest.port",
            "'path':'manifest.port','keyword':'pattern'",
        ),
        (
            "manifest.machine",
            "'path':'manifest.machine','keyword':'enum'",
        ),
        (
            "manifest.containers.0.image",
            "'path':'manifest.containers.0.image','keyword':'required'",
        ),
        (
            "manifest.containers.0",
            r"'additionalProperties':'x\'y','path':'manifest.containers.0','keyword':'additionalProperties'",
        ),
        ("manifest.debug", "'path':'manifest.debug','keyword':'type'"),
        (
            "private.vars.A.nonce",
            "'path':'private.vars.A.nonce','keyword':'required'",
        ),
        (
            "private.vars.A.value",
            "'path':'private.vars.A.value','keyword':'required'",
        ),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(path, error)| {
            (
                (*path).to_owned(),
                format!("schema is invalid. error={{{error}}}"),
            )
        })
        .collect();
    let errors: Vec<_> = errors
        .into_iter()
        .map(|error| (error.path, error.message))
        .collect();
    assert_eq!(errors, expected);
    let empty = json!({"manifest": {"name": "", "version": "", "containers": []}});
    assert_eq!(
        pairs(&validate_generated(&empty)),
        [(
            "manifest.containers",
            "schema is invalid. error={'path':'manifest.containers','keyword':'minItems'}"
        )]
    );
}

#[test]
fn all_faults_of_the_schema_are_reported() {
    let numbers = vec![1; 500];
    let document = json!({"manifest": {"name": "", "version": "",
        "containers": [{"id": "", "image": "", "command": numbers}]}});
    assert_eq!(validate_generated(&document).len(), 500);
}

#[test]
fn each_fault_of_a_document_has_the_path_and_words_of_the_original() {
    let x = "manifest.containers[0].environment.X";
    let mismatch = format!(
        "private var hash does not match the hashed value. public-hash=ab hashed-value={HASH}"
    );
    let public = || Some(json!({"X": {"value": "1"}}));
    let cases: Vec<(Value, Vec<(&str, &str)>)> = vec![
        (document(json!({"X": "$X"}), public(), None), vec![]),
        (
            document(json!({"X": "used by name"}), public(), None),
            vec![],
        ),
        (
            document(
                json!({"X": "$X"}),
                Some(json!({"X": encoded(HASH)})),
                Some(private_x()),
            ),
            vec![],
        ),
        (
            document(json!({"CODIUS_A": "1"}), None, None),
            vec![(
                "manifest.containers[0].environment.CODIUS_A",
                "environment variables starting in `CODIUS` are reserved.",
            )],
        ),
        (
            document(json!({"X": "$X"}), None, None),
            vec![(
                x,
                "cannot validate env variable - manifest.vars not defined",
            )],
        ),
        (
            document(json!({"X": "$Y"}), public(), None),
            vec![(x, "env variable is not defined within manifest.vars.")],
        ),
        // The original believes that every object has a variable of this name.
        (
            document(json!({"X": "$toString"}), public(), None),
            vec![(x, "env variable is not defined within manifest.vars.")],
        ),
        (
            document(
                json!({"X": "$X"}),
                Some(json!({"X": encoded("ab")})),
                Some(json!({})),
            ),
            vec![(
                x,
                "encoded env variable is not defined within private manifest field",
            )],
        ),
        (
            document(json!({"X": ""}), public(), None),
            vec![(
                "manifest.vars.X",
                "public var is not used within a container",
            )],
        ),
        (
            document(json!({"X": "$X"}), Some(json!({"X": encoded("ab")})), None),
            vec![(
                "manifest.vars.X",
                "public var has encoding but private.vars is undefined",
            )],
        ),
        (
            document(json!({}), None, Some(private_x())),
            vec![(
                "private",
                "cannot validate private vars - manifest.vars is not defined.",
            )],
        ),
        (
            document(json!({}), Some(json!({})), Some(private_x())),
            vec![(
                "private.X",
                "private var is not specified within manifest.vars",
            )],
        ),
        (
            document(
                json!({}),
                Some(json!({"X": encoded("ab")})),
                Some(private_x()),
            ),
            vec![
                (
                    "manifest.vars.X",
                    "public var is not used within a container",
                ),
                ("private.X", &mismatch),
                ("private.X", "private var is never used within a container"),
            ],
        ),
    ];
    for (document, expected) in cases {
        let errors = validate_generated(&document);
        assert_eq!(pairs(&errors), expected, "{document}");
        assert!(errors.iter().all(|error| !error.next_step.is_empty()));
    }
    let mut twice = document(json!({}), None, None);
    twice["manifest"]["containers"] = json!([{"id": "a", "image": "i"}, {"id": "a", "image": "i"}]);
    assert_eq!(
        pairs(&validate_generated(&twice)),
        [("manifest.containers", "container ids must be unique.")]
    );
}

#[test]
fn many_variables_do_not_take_time_without_end() {
    // With a search of every environment for every variable, this would take minutes.
    let names: Vec<String> = (0..30_000).map(|n| format!("V{n}")).collect();
    let environment: Value = names
        .iter()
        .map(|name| (name.clone(), json!(format!("${name}"))))
        .collect();
    let vars: Value = names
        .iter()
        .map(|name| (name.clone(), json!({"value": ""})))
        .collect();
    let document = document(environment, Some(vars), None);
    assert!(validate_generated(&document).is_empty());
}
