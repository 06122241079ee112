//! Etcd keeps every value that a key ever had until it is told otherwise, and a leader renews twice a second. So the
//! leader has it forget what is older than an hour.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::members::Members;
use crate::tenure::Tenure;

const EVERY: Duration = Duration::from_secs(600);
/// So many times `EVERY` are kept.
const KEPT: usize = 6;
const PATIENCE: Duration = Duration::from_secs(3);

/// Never ends by itself.
pub(super) async fn run(mut members: Members, tenure: Tenure) {
    let mut revisions = VecDeque::new();
    loop {
        sleep(EVERY).await;
        let now =
            members.call(Instant::now() + PATIENCE, async |mut client| client.get("\0", None).await).await;
        let revision = now.ok().and_then(|answer| answer.header().map(|header| header.revision()));
        revisions.extend(revision);
        if revisions.len() <= KEPT || !tenure.holds() {
            continue;
        }
        let Some(oldest) = revisions.pop_front() else { continue };
        let compacted = members
            .call(Instant::now() + PATIENCE, async |mut client| client.compact(oldest, None).await)
            .await;
        // Who manages this etcd may do it better, or not let us.
        if let Err(trouble) = compacted {
            tracing::debug!(?trouble, revision = oldest, "etcd's history stays as long as it is");
        }
    }
}
