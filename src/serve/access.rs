//! Who may ask: nobody but the page that this server handed out to whoever started it.
//!
//! A server on the loopback address can be reached by every program of the machine, and by every page that a browser
//! has open. Four things keep them out. The *token*, 128 random bits, is in the address that the command prints and in
//! no other place; the page sends it with everything it asks. *Host* has to be the address itself, so that a name of a
//! foreign page that was made to point here gets nothing (DNS rebinding). *Origin* and *Sec-Fetch-Site*, where a
//! browser sends them, have to be this page's own. And nothing that changes anything is done for a GET, or for a body
//! that a form could send.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::diag::{Diagnostic, Result};

/// The header that carries the token.
pub const TOKEN: HeaderName = HeaderName::from_static("x-flanc-token");

/// What whoever asks has to know and to come from.
pub struct Access {
    token: String,
    /// The address that is listened at.
    address: SocketAddr,
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: &'static str,
}

const WRONG_HOST: Refusal =
    refusal(StatusCode::MISDIRECTED_REQUEST, "host", "the request is for another host than the one that is served");
const WRONG_ORIGIN: Refusal = refusal(
    StatusCode::FORBIDDEN,
    "origin",
    "the request comes from another page; type or paste the address that flanc printed",
);
const NO_TOKEN: Refusal = refusal(StatusCode::UNAUTHORIZED, "token", "the request has no token, or a wrong one");
const NOT_JSON: Refusal = refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", "a body has to be JSON");

const fn refusal(status: StatusCode, code: &'static str, message: &'static str) -> Refusal {
    Refusal { status, code, message }
}

impl Access {
    /// For a server at `address`, with a new token.
    pub fn new(address: SocketAddr) -> Result<Access> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|e| Diagnostic::error("random", format!("the system gives no random bytes: {e}")))?;
        let token = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Access { token, address })
    }

    /// The address of the page.
    pub fn url(&self) -> String {
        // What listens everywhere is reached here as well.
        let host = match self.address.ip() {
            ip if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            ip => ip,
        };
        format!("http://{}/{}/", SocketAddr::new(host, self.address.port()), self.token)
    }

    /// Whether `given` is the token. Hashes are compared in constant time, so that time tells nothing of the token.
    pub fn is_token(&self, given: &str) -> bool {
        blake3::hash(given.as_bytes()) == blake3::hash(self.token.as_bytes())
    }

    /// Checks a request; `token` is what its path holds, if it holds one.
    pub fn check(&self, method: &Method, headers: &HeaderMap, token: Option<&str>) -> Result<(), Refusal> {
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok()).filter(|host| self.is_host(host));
        let (Some(host), None) = (host, hosts.next()) else { return Err(WRONG_HOST) };
        if text(header::ORIGIN).is_some_and(|origin| origin.strip_prefix("http://") != Some(host)) {
            return Err(WRONG_ORIGIN);
        }
        // `none`: somebody typed the address, or followed it from outside of the browser.
        let site = text(HeaderName::from_static("sec-fetch-site"));
        if !matches!((site, token), (None | Some("same-origin"), _) | (Some("none"), Some(_))) {
            return Err(WRONG_ORIGIN);
        }
        let given = token.or_else(|| text(TOKEN)).unwrap_or_default();
        if !self.is_token(given) {
            return Err(NO_TOKEN);
        }
        if method == Method::POST {
            let kind = text(header::CONTENT_TYPE).unwrap_or_default();
            if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
                return Err(NOT_JSON);
            }
        }
        Ok(())
    }

    /// Whether a Host header names this server: its own address or, as a name cannot be made to look like one, any
    /// address where all are listened at.
    fn is_host(&self, host: &str) -> bool {
        let (ip, port) = (self.address.ip(), self.address.port());
        let named = match host.parse::<SocketAddr>() {
            Ok(given) => given.port() == port && (given.ip() == ip || ip.is_unspecified()),
            Err(_) => host == format!("localhost:{port}"),
        };
        // Browsers leave out the port that everybody knows.
        named || port == 80 && !host.ends_with(":80") && self.is_host(&format!("{host}:80"))
    }
}

/// Put on every answer: the page runs and loads what this server hands out, and nobody else sees or frames it.
pub fn headers() -> HeaderMap {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                          frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let all = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    all.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a request with these headers to a server at `address`; `TOKEN` stands for the right token.
    fn check(address: &str, method: Method, in_path: Option<&str>, headers: &[(&'static str, &str)]) -> &'static str {
        let access = Access::new(address.parse().unwrap()).unwrap();
        let right = |given: &str| given.replace("TOKEN", &access.token);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(&right(value)).unwrap());
        }
        let in_path = in_path.map(right);
        access.check(&method, &map, in_path.as_deref()).map_or_else(|refusal| refusal.code, |()| "ok")
    }

    const HERE: &str = "127.0.0.1:8400";

    #[test]
    fn hosts() {
        for (address, host, expected) in [
            (HERE, "127.0.0.1:8400", "ok"),
            (HERE, "localhost:8400", "ok"),
            (HERE, "localhost:8401", "host"),
            (HERE, "localhost", "host"),
            (HERE, "127.0.0.2:8400", "host"),
            (HERE, "localhost.example:8400", "host"),
            (HERE, "example.org:8400", "host"),
            (HERE, "", "host"),
            ("[::1]:8400", "[::1]:8400", "ok"),
            ("0.0.0.0:8400", "192.0.2.7:8400", "ok"),
            ("0.0.0.0:8400", "example.org:8400", "host"),
            ("127.0.0.1:80", "127.0.0.1", "ok"),
            ("127.0.0.1:80", "example.org", "host"),
        ] {
            let headers = [("host", host), ("x-flanc-token", "TOKEN")];
            assert_eq!(check(address, Method::GET, None, &headers), expected, "{host} at {address}");
        }
        let twice = [("host", HERE), ("host", "example.org"), ("x-flanc-token", "TOKEN")];
        assert_eq!(check(HERE, Method::GET, None, &twice), "host");
        assert_eq!(check(HERE, Method::GET, None, &[("x-flanc-token", "TOKEN")]), "host");
    }

    #[test]
    fn origins() {
        for (headers, expected) in [
            (&[("origin", "http://127.0.0.1:8400")][..], "ok"),
            (&[("origin", "http://localhost:8400")], "origin"),
            (&[("origin", "https://127.0.0.1:8400")], "origin"),
            (&[("origin", "http://example.org")], "origin"),
            (&[("origin", "null")], "origin"),
            (&[("sec-fetch-site", "same-origin")], "ok"),
            (&[("sec-fetch-site", "same-site")], "origin"),
            (&[("sec-fetch-site", "cross-site")], "origin"),
            (&[("sec-fetch-site", "none")], "origin"),
        ] {
            let all = [&[("host", HERE), ("x-flanc-token", "TOKEN")], headers].concat();
            assert_eq!(check(HERE, Method::GET, None, &all), expected, "{headers:?}");
        }
        assert_eq!(check(HERE, Method::GET, Some("TOKEN"), &[("host", HERE), ("sec-fetch-site", "none")]), "ok");
    }

    #[test]
    fn tokens() {
        for (in_path, header, expected) in [
            (None, "TOKEN", "ok"),
            (Some("TOKEN"), "", "ok"),
            (None, "", "token"),
            (None, "TOKEN0", "token"),
            (Some(""), "TOKEN", "token"),
            (Some("0123456789abcdef0123456789abcdef"), "TOKEN", "token"),
        ] {
            let headers = [("host", HERE), ("x-flanc-token", header)];
            assert_eq!(check(HERE, Method::GET, in_path, &headers), expected, "{in_path:?} {header}");
        }
    }

    #[test]
    fn bodies() {
        for (kind, expected) in [
            ("application/json", "ok"),
            ("application/json; charset=utf-8", "ok"),
            ("text/plain", "content-type"),
            ("application/x-www-form-urlencoded", "content-type"),
            ("", "content-type"),
        ] {
            let headers = [("host", HERE), ("x-flanc-token", "TOKEN"), ("content-type", kind)];
            assert_eq!(check(HERE, Method::POST, None, &headers), expected, "{kind}");
        }
    }
}
