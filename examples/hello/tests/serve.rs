//! The program as it is run: over real connections.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

struct Hello {
    process: Child,
    address: SocketAddr,
}

impl Hello {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_codius-example-hello"))
            .env("PORT", "0")
            .env("CODIUS_MANIFEST", r#"{"name":"test & trial"}"#)
            .env(
                "CODIUS_MANIFEST_HASH",
                "iqjw7i2vwntyuekgvulpp2det2kpwt6cd7tx5ayqybqpmhfk76fa",
            )
            .env("CODIUS_HOST", "https://host.example")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().expect("standard output is a pipe"));
        output
            .read_line(&mut line)
            .expect("the program says where it listens");
        // Lines are read as long as the program runs, as a host does.
        std::thread::spawn(move || output.lines().for_each(drop));
        let port = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        let port: u16 = port.expect("the line ends with the port");
        Self {
            process,
            address: ([127, 0, 0, 1], port).into(),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the program listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time-out can be set");
        stream
    }

    /// Sends bytes on a new connection and reads until the program closes it.
    fn talk(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream
            .write_all(request.as_bytes())
            .expect("the program reads");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("the program answers");
        answer
    }

    fn get(&self, path: &str) -> String {
        self.talk(&format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
    }
}

impl Drop for Hello {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_page_tells_about_the_program() {
    let hello = Hello::start();
    let page = hello.get("/?query");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    for text in [
        "test &amp; trial",
        "iqjw7i2vwntyuekgvulpp2det2kpwt6cd7tx5ayqybqpmhfk76fa",
        "https://host.example",
    ] {
        assert!(page.contains(text), "{text} is missing");
    }
    for outside in ["src=", "@import", "url(", "<link"] {
        assert!(
            !page.contains(outside),
            "the page loads something: {outside}"
        );
    }
    let facts = hello.get("/facts");
    let (_, facts) = facts.split_once("\r\n\r\n").unwrap();
    let facts: serde_json::Value = serde_json::from_str(facts).unwrap();
    assert_eq!(
        (&facts["name"], &facts["requests"]),
        (&"test & trial".into(), &2.into())
    );
    assert!(facts["memory_limit_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(facts["kernel_uptime_secs"].is_u64());
}

#[test]
fn paths_methods_and_nonsense_have_their_statuses() {
    let hello = Hello::start();
    assert!(hello.get("/health").ends_with("\r\n\r\nok\n"));
    assert!(hello.get("/none").starts_with("HTTP/1.1 404 "));
    let head = hello.talk("HEAD /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert!(
        head.contains("Content-Length: 3\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let put = "PUT / HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab";
    assert!(hello.talk(put).starts_with("HTTP/1.1 405 "));
    assert!(hello.talk("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let long = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(16 * 1024 - 19));
    assert!(hello.talk(&long).starts_with("HTTP/1.1 431 "));
}

#[test]
fn one_connection_serves_many_requests() {
    let hello = Hello::start();
    let get = "GET /health HTTP/1.1\r\n\r\n";
    let last = "POST /health HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
    let answers = hello.talk(&format!("{get}{get}{last}"));
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 405 ").count(), 1, "{answers}");
}

#[test]
fn an_echo_comes_back_while_it_is_sent() {
    let hello = Hello::start();
    let mut stream = hello.connect();
    let length = 3_000_000_usize;
    write!(
        stream,
        "POST /echo HTTP/1.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut input = BufReader::new(stream.try_clone().unwrap());
    stream.write_all(b"first").unwrap();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        input.read_line(&mut line).unwrap();
    }
    let mut first = [0; 5];
    input.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first", "before the rest is sent");
    let rest: Vec<u8> = (0_u8..=250).cycle().take(length - 5).collect();
    let expected = rest.clone();
    let sending = std::thread::spawn(move || stream.write_all(&rest));
    let mut echoed = Vec::new();
    input.read_to_end(&mut echoed).unwrap();
    sending.join().unwrap().unwrap();
    assert!(echoed == expected, "{} bytes came back", echoed.len());

    let chunked = "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                   3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert!(
        hello
            .talk(chunked)
            .ends_with("\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    );
    let expecting = "POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
    assert!(
        hello
            .talk(expecting)
            .starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    );
}

#[test]
fn too_many_visitors_are_told_to_come_back() {
    let hello = Hello::start();
    let mut visitors: Vec<TcpStream> = (0..64).map(|_| hello.connect()).collect();
    for visitor in &mut visitors {
        visitor.write_all(b"GET /health HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        visitor.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    let mut refusal = String::new();
    hello.connect().read_to_string(&mut refusal).unwrap();
    assert!(refusal.starts_with("HTTP/1.1 503 "), "{refusal}");
    drop(visitors);
    // The threads notice at their next read; ask until one of them has.
    let answered = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        hello.get("/health").starts_with("HTTP/1.1 200")
    });
    assert!(answered, "room is made when visitors leave");
}
