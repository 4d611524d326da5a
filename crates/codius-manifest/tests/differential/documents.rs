//! Random documents: mostly almost right, written in many ways.

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// JSON as it will be written: members may be doubled, and text may hold what is not JSON.
#[derive(Clone)]
enum Node {
    /// Anything that is not text, list or object.
    Literal(String),
    Text(String),
    List(Vec<Self>),
    Object(Members),
}

/// Names and values, in the order in which they are written.
type Members = Vec<(String, Node)>;

/// Characters that are written, sorted or escaped in an unusual way by one of the two sides.
const ODD: &[char] = &[
    '\0',
    '\u{8}',
    '\t',
    '\n',
    '\u{c}',
    '\r',
    '\u{1f}',
    '"',
    '\\',
    '/',
    '\u{7f}',
    '\u{9f}',
    '\u{a0}',
    '\u{ad}',
    'é',
    '\u{5ff}',
    '\u{600}',
    '\u{604}',
    '\u{605}',
    '\u{70f}',
    '\u{17b4}',
    '\u{17b5}',
    '\u{200b}',
    '\u{200c}',
    '\u{200f}',
    '\u{2028}',
    '\u{202f}',
    '\u{2060}',
    '\u{206f}',
    '\u{d7ff}',
    '\u{e000}',
    '\u{fb33}',
    '\u{feff}',
    '\u{ffef}',
    '\u{fff0}',
    '\u{fffd}',
    '\u{ffff}',
    '\u{10000}',
    '😀',
    '\u{10ffff}',
    '$',
    '\'',
    '.',
    '[',
];

const NAMES: &[&str] = &[
    "A",
    "B",
    "KEY",
    "TOKEN",
    "0",
    "1",
    "7",
    "10",
    "01",
    "4294967294",
    "4294967295",
    "-1",
    "",
    "a.b",
];

const MEMBERS: &[&str] = &[
    "name",
    "version",
    "port",
    "machine",
    "containers",
    "vars",
    "debug",
    "id",
    "image",
    "command",
    "workdir",
    "environment",
    "value",
    "encoding",
    "description",
    "nonce",
    "private",
    "public",
    "other",
];

const IMAGE: &str = "nginx@sha256:3e2ffcf0edca2a4e9b24ca442d227baea7b7f0e33ad654ef1eb806fbd9bedcf0";

pub(crate) struct Documents {
    random: StdRng,
    /// Whether members may have the names that every JavaScript object inherits.
    inherited_names: bool,
}

impl Documents {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            inherited_names: false,
        }
    }

    /// Any JSON, not too deep.
    pub(crate) fn anything(&mut self) -> String {
        self.inherited_names = true;
        let node = self.node(4);
        self.inherited_names = false;
        self.written(&node)
    }

    /// What could be posted to a host.
    pub(crate) fn upload(&mut self) -> String {
        let (vars, private) = self.vars_and_private();
        let manifest = self.manifest(vars);
        let mut members = vec![("manifest".to_owned(), manifest)];
        if !private.is_empty() || self.one_in(2) {
            let vars = Node::Object(private);
            let part = if self.one_in(5) {
                vec![]
            } else {
                vec![("vars".to_owned(), vars)]
            };
            members.push(("private".to_owned(), Node::Object(part)));
        }
        let mut document = Node::Object(members);
        self.mutate(&mut document);
        self.written(&document)
    }

    /// `codius.json` and `codiusvars.json`. Images are pinned, so that nobody asks a registry.
    pub(crate) fn files(&mut self) -> (String, String) {
        let own: Vec<_> = self
            .some_names()
            .into_iter()
            .map(|name| (name, self.public_var(true)))
            .collect();
        let public: Vec<_> = self
            .some_names()
            .into_iter()
            .map(|name| (name, self.public_var(true)))
            .collect();
        let private: Vec<_> = self
            .some_names()
            .into_iter()
            .map(|name| (name, Node::Object(vec![("value".to_owned(), self.text())])))
            .collect();
        let mut codius = Node::Object(vec![("manifest".to_owned(), self.manifest(own))]);
        let mut parts = Vec::new();
        for (name, part) in [("public", public), ("private", private)] {
            if !self.one_in(4) {
                parts.push((name.to_owned(), Node::Object(part)));
            }
        }
        let mut vars = Node::Object(vec![("vars".to_owned(), Node::Object(parts))]);
        if self.one_in(6) {
            self.mutate_once(&mut vars);
        }
        // Without a manifest, the original falls over instead of reporting it; and an image that is
        // not pinned would be looked up.
        if self.one_in(6)
            && let Node::Object(members) = &mut codius
        {
            let mut manifest = members[0].1.clone();
            self.mutate_once(&mut manifest);
            members[0].1 = manifest;
        }
        (self.written(&codius), self.written(&vars))
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.random.random_ratio(1, n)
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.random.random_range(0..from.len())]
    }

    fn some_names(&mut self) -> Vec<String> {
        (0..self.random.random_range(0..4))
            .map(|_| self.pick(NAMES).to_owned())
            .collect()
    }

    fn odd_text(&mut self) -> String {
        let length = self.random.random_range(0..6);
        (0..length)
            .map(|_| match self.random.random_range(0..4) {
                0 => ODD[self.random.random_range(0..ODD.len())],
                1 => self.random.random::<char>(),
                _ => self.random.random_range('a'..='z'),
            })
            .collect()
    }

    fn text(&mut self) -> Node {
        Node::Text(self.odd_text())
    }

    fn number(&mut self) -> String {
        match self.random.random_range(0..5) {
            0 => self.random.random_range(-20..20).to_string(),
            1 => self.random.random::<i64>().to_string(),
            2 => self.random.random::<u64>().to_string(),
            3 => {
                let digits: u64 = self.random.random();
                format!(
                    "{}.{digits}e{}",
                    digits % 10,
                    self.random.random_range(-330..300)
                )
            }
            _ => {
                let number = f64::from_bits(self.random.random());
                if number.is_finite() {
                    format!("{number:e}")
                } else {
                    "-0".to_owned()
                }
            }
        }
    }

    fn literal(&mut self) -> Node {
        Node::Literal(match self.random.random_range(0..4) {
            0 => "null".to_owned(),
            1 => "true".to_owned(),
            2 => "false".to_owned(),
            _ => self.number(),
        })
    }

    fn node(&mut self, depth: u32) -> Node {
        let count = self.random.random_range(0..5);
        match self.random.random_range(0..6) {
            0 | 1 if depth > 0 => Node::List((0..count).map(|_| self.node(depth - 1)).collect()),
            2 | 3 if depth > 0 => Node::Object(
                (0..count)
                    .map(|_| {
                        let name = match self.random.random_range(0..4) {
                            0 => self.pick(NAMES).to_owned(),
                            1 if self.inherited_names => self
                                .pick(&["__proto__", "toString", "constructor", "toJSON"])
                                .to_owned(),
                            2 => self.random.random_range(0..200).to_string(),
                            _ => self.odd_text(),
                        };
                        (name, self.node(depth - 1))
                    })
                    .collect(),
            ),
            4 => self.literal(),
            _ => self.text(),
        }
    }

    fn public_var(&mut self, described: bool) -> Node {
        let mut members = vec![("value".to_owned(), self.text())];
        if described && self.one_in(3) {
            members.push(("description".to_owned(), self.text()));
        }
        Node::Object(members)
    }

    /// Variables of a manifest, and private ones that mostly fit them.
    fn vars_and_private(&mut self) -> (Members, Members) {
        let (mut vars, mut private) = (Vec::new(), Vec::new());
        for name in self.some_names() {
            if self.one_in(2) {
                let described = self.one_in(4);
                vars.push((name, self.public_var(described)));
                continue;
            }
            let (nonce, value) = (self.odd_text(), self.odd_text());
            let mut hash = codius_manifest::private_var_hash(&nonce, &value);
            if self.one_in(8) {
                hash = self.odd_text();
            }
            let encoding = (
                "encoding".to_owned(),
                Node::Text("private:sha256".to_owned()),
            );
            let mut var = vec![encoding, ("value".to_owned(), Node::Text(hash))];
            if self.one_in(2) {
                var.reverse();
            }
            vars.push((name.clone(), Node::Object(var)));
            let mut var = vec![
                ("nonce".to_owned(), Node::Text(nonce)),
                ("value".to_owned(), Node::Text(value)),
            ];
            if self.one_in(2) {
                var.reverse();
            }
            if !self.one_in(8) {
                private.push((name, Node::Object(var)));
            }
        }
        (vars, private)
    }

    fn manifest(&mut self, vars: Members) -> Node {
        let names: Vec<String> = vars.iter().map(|(name, _)| name.clone()).collect();
        let count = self.random.random_range(1..4);
        let containers = (0..count)
            .map(|index| self.container(index, &names))
            .collect();
        let mut members = vec![
            ("name".to_owned(), self.text()),
            ("version".to_owned(), self.text()),
            ("containers".to_owned(), Node::List(containers)),
        ];
        if self.one_in(2) {
            let ports = [
                "80",
                "8080",
                " 1",
                "0x50",
                "8e1",
                "+7",
                "80.0",
                "65535",
                "65536",
                "a1b",
                "-1",
                "\u{feff}9",
                "1.5",
                "0",
                "",
            ];
            members.push(("port".to_owned(), Node::Text(self.pick(&ports).to_owned())));
        }
        if self.one_in(2) {
            members.push(("machine".to_owned(), Node::Text("small".to_owned())));
        }
        if !vars.is_empty() || self.one_in(3) {
            members.push(("vars".to_owned(), Node::Object(vars)));
        }
        if self.one_in(3) {
            let text = self.pick(&["true", "false", "TRUE", "no"]);
            let literal = Node::Literal(self.pick(&["true", "false"]).to_owned());
            let debug = if self.one_in(4) {
                Node::Text(text.to_owned())
            } else {
                literal
            };
            members.push(("debug".to_owned(), debug));
        }
        for at in (1..members.len()).rev() {
            let other = self.random.random_range(0..=at);
            members.swap(at, other);
        }
        Node::Object(members)
    }

    fn container(&mut self, index: usize, vars: &[String]) -> Node {
        let id = if self.one_in(20) { 0 } else { index };
        let mut members = vec![
            ("id".to_owned(), Node::Text(format!("container {id}"))),
            ("image".to_owned(), Node::Text(IMAGE.to_owned())),
        ];
        if self.one_in(3) {
            let count = self.random.random_range(0..3);
            members.push((
                "command".to_owned(),
                Node::List((0..count).map(|_| self.text()).collect()),
            ));
        }
        if self.one_in(3) {
            members.push(("workdir".to_owned(), self.text()));
        }
        let mut environment: Members = Vec::new();
        for var in vars {
            if !self.one_in(6) {
                let name = if self.one_in(2) {
                    var.clone()
                } else {
                    self.pick(NAMES).to_owned()
                };
                environment.push((name, Node::Text(format!("${var}"))));
            }
        }
        if self.one_in(2) {
            environment.push((self.pick(NAMES).to_owned(), self.text()));
        }
        if self.one_in(40) {
            environment.push((self.pick(&["CODIUS", "CODIUS_X"]).to_owned(), self.text()));
        }
        if self.one_in(30) {
            environment.push(("MISSING".to_owned(), Node::Text("$NOTHING".to_owned())));
        }
        if !environment.is_empty() || self.one_in(2) {
            members.push(("environment".to_owned(), Node::Object(environment)));
        }
        Node::Object(members)
    }

    /// Breaks nothing in two of three documents, and one to three things in the others.
    fn mutate(&mut self, document: &mut Node) {
        if self.one_in(3) {
            for _ in 0..self.random.random_range(1..4) {
                self.mutate_once(document);
            }
        }
    }

    fn mutate_once(&mut self, node: &mut Node) {
        let deeper = !self.one_in(4);
        match node {
            Node::List(items) if deeper && !items.is_empty() => {
                let at = self.random.random_range(0..items.len());
                return self.mutate_once(&mut items[at]);
            }
            Node::Object(members) if deeper && !members.is_empty() => {
                let at = self.random.random_range(0..members.len());
                return self.mutate_once(&mut members[at].1);
            }
            Node::Literal(_) | Node::Text(_) | Node::List(_) | Node::Object(_) => {}
        }
        match (self.random.random_range(0..6), node) {
            (0, Node::Object(members)) if !members.is_empty() => {
                let at = self.random.random_range(0..members.len());
                members.remove(at);
            }
            (1, Node::Object(members)) => {
                let name = self.pick(MEMBERS).to_owned();
                members.push((name, self.node(2)));
            }
            (2, Node::Object(members)) if !members.is_empty() => {
                // A double: the last one counts.
                let at = self.random.random_range(0..members.len());
                members.insert(0, (members[at].0.clone(), self.node(1)));
            }
            (3 | 4, node @ (Node::List(_) | Node::Object(_))) => {
                let copy = node.clone();
                *node = Node::Text(self.written(&copy));
            }
            (_, Node::Text(text)) if text == IMAGE => {}
            (_, node) => *node = self.node(2),
        }
    }

    fn written(&mut self, node: &Node) -> String {
        let mut out = String::new();
        self.write(node, &mut out);
        out
    }

    fn write(&mut self, node: &Node, out: &mut String) {
        match node {
            Node::Literal(text) => out.push_str(text),
            Node::Text(text) => self.write_text(text, out),
            Node::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    self.write_space(out);
                    self.write(item, out);
                }
                out.push(']');
            }
            Node::Object(members) => {
                out.push('{');
                for (index, (name, member)) in members.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    self.write_space(out);
                    self.write_text(name, out);
                    out.push(':');
                    self.write_space(out);
                    self.write(member, out);
                }
                out.push('}');
            }
        }
    }

    fn write_space(&mut self, out: &mut String) {
        if self.one_in(8) {
            out.push_str(self.pick(&[" ", "\n", "\t", "\r\n"]));
        }
    }

    fn write_text(&mut self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            let must = character < ' ' || matches!(character, '"' | '\\');
            if must || self.one_in(8) {
                let upper = self.one_in(2);
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&if upper {
                        format!("\\u{unit:04X}")
                    } else {
                        format!("\\u{unit:04x}")
                    });
                }
            } else {
                out.push(character);
            }
        }
        out.push('"');
    }
}
