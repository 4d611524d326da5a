//! Header fields that must not pass a proxy, and those it adds (RFC 9110, 7.6.1).
//!
//! Trap: a visitor can name any field in `Connection` and so ask us to drop it. Fields on which
//! routing, framing or identity rest are never dropped that way.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};

use crate::failure::Failure;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// What the pod is told about where a request came from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    address: HeaderValue,
    scheme: HeaderValue,
    /// The visitor is a proxy of the operator, so what it says of its own visitors is true.
    trusted: bool,
}

impl Origin {
    pub(crate) fn new(address: IpAddr, scheme: &'static str, trusted: bool) -> Self {
        // An IPv4 visitor of an IPv6 listener is still an IPv4 visitor.
        let text = address.to_canonical().to_string();
        Self {
            address: HeaderValue::from_str(&text)
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            scheme: HeaderValue::from_static(scheme),
            trusted,
        }
    }

    /// Sets `X-Forwarded-For`, `-Proto` and `-Host`; whatever a visitor wrote there itself, or in
    /// the fields of the same meaning, is dropped unless the visitor is trusted.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        if self.trusted {
            headers.append(X_FORWARDED_FOR, self.address.clone());
            if !headers.contains_key(X_FORWARDED_PROTO) {
                headers.insert(X_FORWARDED_PROTO, self.scheme.clone());
            }
            if headers.contains_key(X_FORWARDED_HOST) {
                return;
            }
        } else {
            headers.remove(FORWARDED);
            headers.remove(X_REAL_IP);
            headers.insert(X_FORWARDED_FOR, self.address.clone());
            headers.insert(X_FORWARDED_PROTO, self.scheme.clone());
        }
        match headers.get(HOST).cloned() {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
}

/// The protocol the sender of these headers wants to switch to, if it really asks for one:
/// `Upgrade` counts only when `Connection` names it. `h2c` is an offer we may ignore, and do.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let named = tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let http2 = protocol
        .as_bytes()
        .split(|byte| *byte == b',')
        .all(|token| token.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    (named && !http2).then(|| protocol.clone())
}

/// Removes what concerns only the connection the message came on. Body framing is decided anew
/// by the side that sends, from the body it has; `Content-Length` stays as it describes the body.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) -> Result<(), Failure> {
    if let Some(coding) = headers.remove(TRANSFER_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
    {
        return Err(Failure::TransferCoding);
    }
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token).ok())
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        // Trailers can be passed on, so that much of TE may be.
        let trailers = tokens(headers, TE).any(|token| token.eq_ignore_ascii_case(b"trailers"));
        headers.remove(CONNECTION);
        for name in named {
            headers.remove(name);
        }
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    } else if headers.contains_key(TE) {
        headers.remove(TE);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(UPGRADE);
    Ok(())
}

/// Asks the next hop for the upgrade the visitor asked for.
pub(crate) fn write_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// The members of a comma-separated field, over all its lines.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn connection_fields_and_those_it_names_stay_behind() {
        let mut map = headers(&[
            ("host", "a"),
            ("connection", "keep-alive, X-Secret, Host, content-length"),
            ("connection", "close"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("x-secret", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "Chunked"),
            ("upgrade", "h2c"),
            ("content-length", "3"),
            ("cookie", "kept"),
        ]);
        remove_hop_by_hop(&mut map).unwrap();
        assert_eq!(
            lines(&map),
            ["content-length: 3", "cookie: kept", "host: a"]
        );
    }

    #[test]
    fn willingness_to_take_trailers_is_passed_on() {
        let mut map = headers(&[("connection", "TE"), ("te", "gzip, trailers")]);
        remove_hop_by_hop(&mut map).unwrap();
        assert_eq!(lines(&map), ["connection: te", "te: trailers"]);
    }

    #[test]
    fn a_transfer_coding_we_cannot_undo_is_refused() {
        let mut map = headers(&[("transfer-encoding", "gzip, chunked")]);
        assert_eq!(remove_hop_by_hop(&mut map), Err(Failure::TransferCoding));
    }

    #[test]
    fn an_upgrade_must_be_named_by_connection() {
        let websocket = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(upgrade(&headers(&websocket)).unwrap(), "websocket");
        assert_eq!(upgrade(&headers(&websocket[1..])), None);
        assert_eq!(upgrade(&headers(&websocket[..1])), None);
        let http2 = [
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "h2c"),
        ];
        assert_eq!(upgrade(&headers(&http2)), None);
    }

    #[test]
    fn a_visitor_cannot_say_who_it_is_but_a_trusted_proxy_can() {
        let claimed = [
            ("host", "pod.host:80"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "bank.example"),
            ("forwarded", "for=10.0.0.1"),
            ("x-real-ip", "10.0.0.1"),
        ];
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();

        let mut map = headers(&claimed);
        Origin::new(mapped, "http", false).write(&mut map);
        assert_eq!(
            lines(&map),
            [
                "host: pod.host:80",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: pod.host:80",
                "x-forwarded-proto: http",
            ]
        );

        let mut map = headers(&claimed[..4]);
        Origin::new(mapped, "http", true).write(&mut map);
        assert_eq!(
            lines(&map),
            [
                "host: pod.host:80",
                "x-forwarded-for: 10.0.0.1",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: bank.example",
                "x-forwarded-proto: https",
            ]
        );
    }
}
