//! Who may ask: this machine's own pages alone, or whoever has the token.
//!
//! A page of another site can make a browser send requests here, and a name that it controls can be made to
//! stand for this machine (DNS rebinding). So a request must name a host that such a page cannot have, and come
//! from a page of ours.

use std::io;
use std::net::IpAddr;

/// What requests are asked for.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Names of hosts that are allowed beside `localhost` and addresses.
    pub hosts: Vec<String>,
    /// What requests must know, if others can reach this machine; without one only this machine's own addresses are
    /// allowed.
    pub token: Option<String>,
}

/// What of a request tells where it comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Claim<'a> {
    /// The header `Host`.
    pub host: Option<&'a str>,
    /// The header `Origin`.
    pub origin: Option<&'a str>,
    /// The header `Sec-Fetch-Site`, but for a page that a person opens by a link.
    pub site: Option<&'a str>,
    /// The token, from the address or a cookie.
    pub token: Option<&'a str>,
}

impl Guard {
    /// Why a request is refused, if it is.
    pub fn refuses(&self, claim: Claim<'_>) -> Option<&'static str> {
        let Some(host) = claim.host else { return Some("the request names no host") };
        if !self.allows(host) {
            return Some(
                "this host name is not allowed: start with --allow-host NAME if it is meant",
            );
        }
        if let Some(origin) = claim.origin {
            // A proxy may have put a name of its own into `Host`.
            let from = origin.split_once("://").map_or("", |(_, from)| from);
            if from != host && !self.names(from) {
                return Some("requests from pages of other sites are not answered");
            }
        }
        if matches!(claim.site, Some("cross-site" | "same-site")) {
            return Some("requests from pages of other sites are not answered");
        }
        match (&self.token, claim.token) {
            (None, _) => None,
            (Some(token), Some(given)) if is_same(token, given) => None,
            _ => {
                Some("the token is missing or wrong: open the address that the program has printed")
            }
        }
    }

    fn allows(&self, host: &str) -> bool {
        let name = without_port(host);
        let is_fit = |address: IpAddr| address.is_loopback() || self.token.is_some();
        name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_fit) || self.names(host)
    }

    /// Whether it is one of the names that were given.
    fn names(&self, host: &str) -> bool {
        self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(without_port(host)))
    }
}

/// A name that nobody guesses: 128 random bits.
///
/// # Errors
/// If the system gives no random numbers.
pub fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or(v6, |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Compares in a time that does not depend on where they differ.
fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sites_and_names_are_refused() {
        let guard = Guard { hosts: vec!["lab.example".into()], token: None };
        let host = |host| guard.refuses(Claim { host: Some(host), ..Claim::default() }).is_none();
        for allowed in
            ["localhost:8000", "LOCALHOST", "127.0.0.1:8000", "[::1]:8000", "lab.example:1"]
        {
            assert!(host(allowed), "{allowed}");
        }
        for refused in [
            "evil.example:8000",
            "localhost.evil.example",
            "",
            "lab.example.evil:1",
            "[x]",
            "0.0.0.0",
            "10.0.0.7",
        ] {
            assert!(!host(refused), "{refused}");
        }
        assert!(guard.refuses(Claim::default()).is_some());
        let origin = |origin| {
            let claim =
                Claim { host: Some("localhost:80"), origin: Some(origin), ..Claim::default() };
            guard.refuses(claim).is_none()
        };
        assert!(origin("http://localhost:80") && origin("https://localhost:80"));
        assert!(origin("https://lab.example"), "behind a proxy");
        assert!(
            !origin("http://localhost:81") && !origin("null") && !origin("http://evil.example")
        );
        let site = |site| {
            let claim = Claim { host: Some("localhost"), site: Some(site), ..Claim::default() };
            guard.refuses(claim).is_none()
        };
        assert!(site("none") && site("same-origin") && !site("cross-site") && !site("same-site"));
    }

    #[test]
    fn a_token_must_be_known_if_there_is_one() {
        let guard = Guard { hosts: Vec::new(), token: Some("s3cret".into()) };
        let with = |token| {
            guard.refuses(Claim { host: Some("10.0.0.7"), token, ..Claim::default() }).is_none()
        };
        assert!(with(Some("s3cret")) && !with(Some("s3creT")) && !with(Some("")) && !with(None));
    }
}
