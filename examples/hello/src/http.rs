//! As much of HTTP/1.1 (RFC 9112) as the server needs: keep-alive, bodies of known length and in
//! chunks, `Expect: 100-continue`.

use std::{
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// The most bytes of a request line and all headers.
const MAX_HEAD_BYTES: u64 = 16 * 1024;

/// The longest line in front of a chunk, in bytes.
const MAX_CHUNK_LINE_BYTES: u64 = 1024;

/// The most bytes of a body that nobody asked for.
const MAX_DISCARDED_BYTES: u64 = 1 << 20;

/// How long a visitor may be silent, or not take what is sent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that are echoed at a time.
const ECHO_BYTES: usize = 16 * 1024;

pub(crate) struct Connection {
    input: BufReader<TcpStream>,
    output: BufWriter<TcpStream>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) keep_alive: bool,
    pub(crate) body: Body,
    expects_continue: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    /// Bytes.
    Length(u64),
    Chunked,
}

pub(crate) struct Response {
    pub(crate) status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Response {
    pub(crate) fn html(body: String) -> Self {
        Self {
            status: "200 OK",
            content_type: "text/html; charset=utf-8",
            body,
        }
    }

    pub(crate) fn json(body: String) -> Self {
        Self {
            status: "200 OK",
            content_type: "application/json",
            body,
        }
    }

    pub(crate) fn text(status: &'static str, body: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.to_owned(),
        }
    }
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            input: BufReader::new(stream.try_clone()?),
            output: BufWriter::new(stream),
        })
    }

    /// The next request; `None` if the visitor has no more. What is no request is answered here and
    /// ends the conversation.
    pub(crate) fn request(&mut self) -> io::Result<Option<Request>> {
        let head = match read_head(&mut self.input) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.refuse(
                    "431 Request Header Fields Too Large",
                    "the headers are too long\n",
                )?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let request = parse_head(&head);
        if request.is_none() {
            self.refuse("400 Bad Request", "this is not HTTP/1.1\n")?;
        }
        Ok(request)
    }

    pub(crate) fn respond(&mut self, request: &Request, response: &Response) -> io::Result<()> {
        self.write_response(response, request.keep_alive, request.method != "HEAD")
    }

    /// Answers and says that there will be no other answer.
    pub(crate) fn refuse(&mut self, status: &'static str, text: &str) -> io::Result<()> {
        self.write_response(&Response::text(status, text), false, true)
    }

    fn write_response(
        &mut self,
        response: &Response,
        keep_alive: bool,
        with_body: bool,
    ) -> io::Result<()> {
        write!(
            self.output,
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'; \
             style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'\r\n{}\r\n",
            response.status,
            response.content_type,
            response.body.len(),
            if keep_alive {
                ""
            } else {
                "Connection: close\r\n"
            },
        )?;
        if with_body {
            self.output.write_all(response.body.as_bytes())?;
        }
        self.output.flush()
    }

    /// Sends the body back while it comes in.
    pub(crate) fn echo(&mut self, request: &Request) -> io::Result<()> {
        self.allow_body(request)?;
        let framing = match request.body {
            Body::None => "Content-Length: 0".to_owned(),
            Body::Length(length) => format!("Content-Length: {length}"),
            Body::Chunked => "Transfer-Encoding: chunked".to_owned(),
        };
        write!(
            self.output,
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{framing}\r\n{}\r\n",
            if request.keep_alive {
                ""
            } else {
                "Connection: close\r\n"
            },
        )?;
        let output = &mut self.output;
        let chunked = request.body == Body::Chunked;
        read_body(&mut self.input, request.body, u64::MAX, |piece| {
            if chunked {
                write!(output, "{:x}\r\n", piece.len())?;
            }
            output.write_all(piece)?;
            if chunked {
                output.write_all(b"\r\n")?;
            }
            output.flush()
        })?;
        if chunked {
            self.output.write_all(b"0\r\n\r\n")?;
        }
        self.output.flush()
    }

    /// Reads over a body that nobody wants, to find the next request behind it.
    pub(crate) fn discard(&mut self, request: &Request) -> io::Result<()> {
        self.allow_body(request)?;
        read_body(&mut self.input, request.body, MAX_DISCARDED_BYTES, |_| {
            Ok(())
        })
    }

    fn allow_body(&mut self, request: &Request) -> io::Result<()> {
        if request.expects_continue {
            self.output.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            self.output.flush()?;
        }
        Ok(())
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The lines up to the first empty one; `None` if the connection ends before they do.
fn read_head(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut bounded = input.take(MAX_HEAD_BYTES);
    loop {
        let before = head.len();
        let read = bounded.read_until(b'\n', &mut head)?;
        if !head.ends_with(b"\n") {
            let cut = bounded.limit() == 0;
            return if cut {
                Err(invalid("the head is too long"))
            } else {
                Ok(None)
            };
        }
        let empty = matches!(&head[before..], b"\r\n" | b"\n");
        // Empty lines before a request are to be ignored (RFC 9112, 2.2).
        if empty && before == 0 {
            head.clear();
        } else if empty {
            return Ok(Some(head));
        }
        debug_assert!(read > 0, "a line has at least its end");
    }
}

fn parse_head(head: &[u8]) -> Option<Request> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.lines();
    let mut parts = lines.next()?.split(' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || method.is_empty() || !target.starts_with('/') {
        return None;
    }
    let mut request = Request {
        method: method.to_owned(),
        path: target.split('?').next().unwrap_or_default().to_owned(),
        keep_alive: match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ => return None,
        },
        body: Body::None,
        expects_continue: false,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            // Two lengths, or a length beside chunks, are how requests are smuggled.
            let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            if request.body != Body::None || !digits {
                return None;
            }
            request.body = Body::Length(value.parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if request.body != Body::None || !value.eq_ignore_ascii_case("chunked") {
                return None;
            }
            request.body = Body::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            request.keep_alive &= !value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("expect") {
            request.expects_continue = value.eq_ignore_ascii_case("100-continue");
        }
    }
    Some(request)
}

/// Reads a body to its end and hands its pieces on as they come.
fn read_body(
    input: &mut impl BufRead,
    body: Body,
    max_bytes: u64,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut allowed = max_bytes;
    let mut pieces = |input: &mut dyn Read, length: u64| {
        allowed = allowed
            .checked_sub(length)
            .ok_or_else(|| invalid("the body is too long"))?;
        copy(input, length, &mut take)
    };
    match body {
        Body::None => Ok(()),
        Body::Length(length) => pieces(input, length),
        Body::Chunked => loop {
            let length = chunk_length(&line(input)?)?;
            if length == 0 {
                // Trailers, which mean nothing here; as many as a head may have bytes.
                for _ in 0..MAX_HEAD_BYTES / 2 {
                    if line(input)?.is_empty() {
                        return Ok(());
                    }
                }
                return Err(invalid("too many trailers"));
            }
            pieces(input, length)?;
            if !line(input)?.is_empty() {
                return Err(invalid("a chunk is longer than it said"));
            }
        },
    }
}

fn copy(
    input: &mut dyn Read,
    length: u64,
    take: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; ECHO_BYTES];
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(ECHO_BYTES).min(ECHO_BYTES);
        let read = input.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        take(&buffer[..read])?;
        left -= read as u64;
    }
    Ok(())
}

/// A line without its end.
fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    input
        .take(MAX_CHUNK_LINE_BYTES)
        .read_until(b'\n', &mut line)?;
    let line = line
        .strip_suffix(b"\n")
        .ok_or_else(|| invalid("a line is cut off or too long"))?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8(line.to_vec()).map_err(|_| invalid("a line is not text"))
}

fn chunk_length(line: &str) -> io::Result<u64> {
    let digits = line.split(';').next().unwrap_or_default().trim_end();
    if digits.starts_with('+') {
        return Err(invalid("a chunk has no length"));
    }
    u64::from_str_radix(digits, 16).map_err(|_| invalid("a chunk has no length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Request> {
        parse_head(text.replace('\n', "\r\n").as_bytes())
    }

    #[test]
    fn a_request_is_understood() {
        let request =
            parsed("POST /echo?a=b HTTP/1.1\nHost: x\nContent-Length: 3\nEXPECT: 100-continue\n\n");
        let expected = Request {
            method: "POST".into(),
            path: "/echo".into(),
            keep_alive: true,
            body: Body::Length(3),
            expects_continue: true,
        };
        assert_eq!(request, Some(expected));
        assert!(!parsed("GET / HTTP/1.0\n\n").unwrap().keep_alive);
        assert!(
            !parsed("GET / HTTP/1.1\nconnection: Close\n\n")
                .unwrap()
                .keep_alive
        );
    }

    #[test]
    fn what_is_ambiguous_is_no_request() {
        for text in [
            "GET / HTTP/2\n\n",
            "GET /\n\n",
            "GET  / HTTP/1.1\n\n",
            "GET http://x/ HTTP/1.1\n\n",
            "GET / HTTP/1.1\nno colon\n\n",
            "POST / HTTP/1.1\nContent-Length: 3\nContent-Length: 3\n\n",
            "POST / HTTP/1.1\nContent-Length: 3\nTransfer-Encoding: chunked\n\n",
            "POST / HTTP/1.1\nTransfer-Encoding: gzip, chunked\n\n",
            "POST / HTTP/1.1\nContent-Length: +3\n\n",
            "POST / HTTP/1.1\nContent-Length: 99999999999999999999\n\n",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
        assert_eq!(parse_head(b"GET /\xff HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn a_head_is_bounded_and_may_end_early() {
        assert_eq!(read_head(&mut &b""[..]).unwrap(), None);
        assert_eq!(read_head(&mut &b"GET / HT"[..]).unwrap(), None);
        assert_eq!(
            read_head(&mut &b"\r\na\r\n\r\nrest"[..]).unwrap().unwrap(),
            b"a\r\n\r\n"
        );
        let long = vec![b'a'; 20_000];
        assert_eq!(
            read_head(&mut &long[..]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    fn body_of(mut input: &[u8], body: Body, max: u64) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        read_body(&mut input, body, max, |piece| {
            all.extend_from_slice(piece);
            Ok(())
        })?;
        assert_eq!(input, b"next", "the next request stays where it is");
        Ok(all)
    }

    #[test]
    fn bodies_are_read_to_their_end_and_not_further() {
        assert_eq!(body_of(b"next", Body::None, 9).unwrap(), b"");
        assert_eq!(body_of(b"abcnext", Body::Length(3), 9).unwrap(), b"abc");
        let chunks = b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nTrailer: 1\r\n\r\nnext";
        assert_eq!(body_of(chunks, Body::Chunked, 9).unwrap(), b"abc");
        assert_eq!(body_of(chunks, Body::Chunked, 3).unwrap(), b"abc");
        for (input, body) in [
            (&b"ab"[..], Body::Length(3)),
            (b"2\r\nabc\r\n0\r\n\r\n", Body::Chunked),
            (b"+2\r\nab\r\n0\r\n\r\n", Body::Chunked),
            (b"x\r\n", Body::Chunked),
            (b"2\r\nab", Body::Chunked),
            (chunks, Body::Chunked),
        ] {
            assert!(body_of(input, body, 2).is_err(), "{input:?}");
        }
    }
}
