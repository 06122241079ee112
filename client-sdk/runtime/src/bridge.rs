//! A client on a machine without a daemon: a thread that passes frames between a socket pair and a gateway's gRPC
//! stream, so that everything else speaks to a Unix socket (rule T1).

mod find;
mod lane;
mod session;

use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cluster_store::with_signals_blocked;

pub(crate) use lane::{Lane, LaneError};

use crate::{ConnectError, Interrupt};

const PIECE: Duration = Duration::from_millis(100);
/// For how long a lost connection is tried again: `90`, `90s`, `10m`, `1h`; the gateway may allow less.
const GRACE_VARIABLE: &str = "CLUSTER_CLIENT_GRACE";

/// A connection to a gateway.
pub(crate) struct Bridge {
    /// This process's end of the socket pair.
    pub(crate) socket: UnixStream,
    /// For parts of large values.
    pub(crate) lane: Lane,
    /// The gateway's address.
    pub(crate) place: String,
}

/// Finds the gateway and connects to it.
pub(crate) fn open(
    address: &str,
    token: &str,
    deadline: Instant,
    interrupt: Interrupt<'_>,
) -> Result<Bridge, ConnectError> {
    let local = |error: std::io::Error| ConnectError::Local(error.to_string());
    let (socket, theirs) = UnixStream::pair().map_err(local)?;
    let (lane, lane_end) = lane::lane().map_err(local)?;
    theirs.set_nonblocking(true).map_err(local)?;
    let (tell, told) = mpsc::channel();
    let (address, token) = (address.to_owned(), token.to_owned());
    let grace = wanted_grace(std::env::var(GRACE_VARIABLE).ok().as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(local)?;
    let bridge = move || {
        runtime.block_on(async {
            let patience = deadline.saturating_duration_since(Instant::now());
            let gateway = match tokio::time::timeout(patience, find::find(&address, &token, deadline)).await {
                Ok(found) => found,
                Err(_) => Err(find::unreachable(&address, "it did not answer in time")),
            };
            match gateway {
                Ok((gateway, place)) => {
                    // The one who asked may have been interrupted; then the pair's other end is closed too.
                    let _ = tell.send(Ok(place.clone()));
                    let place = session::Place { heads: address, gateway: place, token, grace };
                    session::carry(gateway, theirs, lane_end, place).await;
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        });
    };
    // It ends when either side closes, so nobody joins it.
    with_signals_blocked(|| std::thread::Builder::new().name("cluster-bridge".to_owned()).spawn(bridge))
        .map_err(local)?;
    loop {
        match told.recv_timeout(PIECE) {
            Ok(answer) => return answer.map(|place| Bridge { socket, lane, place }),
            Err(mpsc::RecvTimeoutError::Timeout) => interrupt().map_err(|_| ConnectError::Interrupted)?,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(ConnectError::Local("the thread that connects has ended".to_owned()));
            }
        }
    }
}

/// Without a word, as long as the gateway allows.
fn wanted_grace(said: Option<&str>) -> Result<Duration, ConnectError> {
    let Some(said) = said.map(str::trim).filter(|said| !said.is_empty()) else { return Ok(Duration::MAX) };
    let digits = said.trim_end_matches(|letter: char| letter.is_ascii_alphabetic() || letter == ' ');
    let factor = match said[digits.len()..].trim() {
        "ms" => Some(1),
        "" | "s" | "sec" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let number: Option<f64> = digits.parse().ok().filter(|number: &f64| *number >= 0.0 && *number <= 1e9);
    match (number, factor) {
        (Some(number), Some(factor)) => Ok(Duration::from_millis((number * f64::from(factor)) as u64)),
        _ => Err(ConnectError::Local(format!(
            "{GRACE_VARIABLE} is `{said}`; it must be a time such as 90s, 10m or 1h"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_is_read_as_people_write_it() {
        for (said, seconds) in [("90", 90), ("1.5 min", 90), ("10m", 600), ("1h", 3600), ("0", 0)] {
            assert_eq!(wanted_grace(Some(said)), Ok(Duration::from_secs(seconds)), "{said}");
        }
        assert_eq!(wanted_grace(None), Ok(Duration::MAX));
        for wrong in ["soon", "-1s", "10 fortnights"] {
            assert!(wanted_grace(Some(wrong)).unwrap_err().to_string().contains(wrong));
        }
    }
}
