//! `etcd://[USER@]HOST[:PORT][,HOST[:PORT]...][/NAME]`: where the members of an etcd are, and which cluster is meant.

use std::fmt;
use std::str::FromStr;

/// The port that etcd listens on for clients unless told otherwise.
const ETCD_PORT: u16 = 2379;

/// Under which keys a cluster keeps its state unless its URL names others.
const DEFAULT_NAME: &str = "concurrent-ml";

/// Members of an etcd, and the name of one cluster in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdUrl {
    /// `host:port` of each.
    pub members: Vec<String>,
    /// All keys begin with it and a slash.
    pub name: String,
    /// Whom etcd knows this cluster as, if it asks.
    pub user: Option<String>,
}

/// What is wrong with a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state URL `{url}` {reason}: write etcd://HOST:PORT,HOST:PORT,...")]
pub struct BadUrl {
    url: String,
    reason: String,
}

impl FromStr for EtcdUrl {
    type Err = BadUrl;

    fn from_str(url: &str) -> Result<Self, BadUrl> {
        // A password must not be in an error that somebody shares.
        let bad = |shown: &str, reason: &str| BadUrl { url: shown.to_owned(), reason: reason.to_owned() };
        let rest = match url.split_once("://") {
            Some(("etcd", rest)) => rest,
            Some((other, _)) => {
                return Err(bad(url, &format!("begins with {other}://, and only etcd:// is known")));
            }
            None => return Err(bad(url, "does not begin with etcd://")),
        };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) if !user.contains(':') => (Some(user.to_owned()), rest),
            Some((_, rest)) => {
                let shown = format!("etcd://...@{rest}");
                let reason = "holds a password, which others on this machine could see; \
                              set CLUSTER_STATE_PASSWORD instead";
                return Err(bad(&shown, reason));
            }
            None => (None, rest),
        };
        let (members, name) = match rest.split_once('/') {
            Some((members, name)) => (members, name.trim_matches('/')),
            None => (rest, ""),
        };
        let members: Vec<_> = members.split(',').map(|member| with_port(member.trim())).collect();
        let members = members
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| bad(url, "names a member that is no HOST:PORT"))?;
        let name = if name.is_empty() { DEFAULT_NAME } else { name };
        Ok(Self { members, name: name.to_owned(), user })
    }
}

/// `None`: nobody could be reached under that.
fn with_port(member: &str) -> Option<String> {
    let (host, port) = match member.rsplit_once(':') {
        // The colons of an address like [::1] are its own.
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (member, ETCD_PORT),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let possible = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(plain),
    };
    (possible && port > 0).then(|| format!("{host}:{port}"))
}

impl fmt::Display for EtcdUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.iter().map(|user| format!("{user}@")).collect::<String>();
        write!(formatter, "etcd://{user}{}/{}", self.members.join(","), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_the_usual() {
        let url: EtcdUrl = "etcd://h1:2379, h2,[::1]:1,[fe80::2]".parse().unwrap();
        assert_eq!(url.members, ["h1:2379", "h2:2379", "[::1]:1", "[fe80::2]:2379"]);
        assert_eq!((url.name.as_str(), url.user), ("concurrent-ml", None));
        let url: EtcdUrl = "etcd://ann@h1/teams/vision/".parse().unwrap();
        assert_eq!((url.name.as_str(), url.user.as_deref()), ("teams/vision", Some("ann")));
        assert_eq!(url.to_string(), "etcd://ann@h1:2379/teams/vision");
    }

    #[test]
    fn what_is_no_url_is_named() {
        for (url, word) in [
            ("h1:2379", "does not begin"),
            ("http://h1:2379", "only etcd:// is known"),
            ("etcd://", "no HOST:PORT"),
            ("etcd://h1,,h2", "no HOST:PORT"),
            ("etcd://h1:port", "no HOST:PORT"),
            ("etcd://h1:0", "no HOST:PORT"),
            ("etcd://[::1", "no HOST:PORT"),
            ("etcd://a b", "no HOST:PORT"),
        ] {
            let error = url.parse::<EtcdUrl>().unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(url), "{error}");
        }
        let error = "etcd://ann:secret@h1".parse::<EtcdUrl>().unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("CLUSTER_STATE_PASSWORD"), "{error}");
    }
}
