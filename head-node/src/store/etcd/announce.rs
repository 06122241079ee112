//! Every head says in etcd that it is there, under a lease of etcd's, so that one that is gone is forgotten.

use std::time::Duration;

use etcd_client::{Client, Error, PutOptions};
use tokio::time::{Instant, sleep};

use super::members::Members;

/// A head that is gone is shown for so many seconds more.
const SECONDS: i64 = 10;
const RENEW: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(2);

/// Never ends by itself.
pub(super) async fn run(mut members: Members, key: String, address: String) {
    let mut lease = None;
    loop {
        let deadline = Instant::now() + PATIENCE;
        let kept = members.call(deadline, async |client| keep(client, lease, &key, &address).await).await;
        match kept {
            Ok(kept) => lease = kept,
            Err(trouble) => tracing::debug!(?trouble, "cannot say that this head is here"),
        }
        // A lease that etcd has forgotten is replaced at once.
        if lease.is_some() {
            sleep(RENEW).await;
        } else {
            sleep(RENEW / 10).await;
        }
    }
}

/// The lease that now holds, or `None` if the one so far is over.
async fn keep(
    mut client: Client,
    lease: Option<i64>,
    key: &str,
    address: &str,
) -> Result<Option<i64>, Error> {
    match lease {
        Some(lease) => match client.lease_keep_alive(lease).await {
            Ok(_) => Ok(Some(lease)),
            // So the client says that etcd knows no such lease.
            Err(Error::LeaseKeepAliveError(_)) => Ok(None),
            Err(error) => Err(error),
        },
        None => {
            let lease = client.lease_grant(SECONDS, None).await?.id();
            client.put(key, address, Some(PutOptions::new().with_lease(lease))).await?;
            Ok(Some(lease))
        }
    }
}
