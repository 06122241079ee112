//! When a head leads: at once where it alone can, else when an etcd says that no other does.

use std::time::Duration;

use head_core::HeadConfig;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::config::StateAt;
use crate::state::begin_term;
use crate::store::etcd::{Position, Session};
use crate::store::{MemoryStore, RedbStore, StateStore, StoreError};
use crate::tenure::Tenure;

/// Before another try to lead, where etcd did not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// A head's claim to lead.
pub(crate) enum Leadership {
    /// Nobody else can; `None` once it does.
    Alone(Option<Box<dyn StateStore>>),
    /// One of several.
    Shared(Session),
}

/// A time in which a head leads.
pub(crate) struct Reign {
    /// What its core is told of its term and of those before.
    pub(crate) begun: HeadConfig,
    pub(crate) store: Box<dyn StateStore>,
    pub(crate) tenure: Tenure,
}

impl Leadership {
    pub(crate) async fn open(state: &StateAt) -> Result<Self, StoreError> {
        Ok(match state {
            StateAt::Memory => Self::Alone(Some(Box::new(MemoryStore::default()))),
            StateAt::File(path) => Self::Alone(Some(Box::new(RedbStore::open(path)?))),
            StateAt::Etcd { url, address } => Self::Shared(Session::open(url, address).await?),
        })
    }

    /// Where heads are; `None` if there is but this.
    pub(crate) fn position(&self) -> Option<watch::Receiver<Position>> {
        match self {
            Self::Alone(_) => None,
            Self::Shared(session) => Some(session.position()),
        }
    }

    /// Whether a head that was deposed may lead again.
    pub(crate) fn can_return(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    /// Waits until this head leads. Taking leadership and raising the term are one transaction (rule H1).
    pub(crate) async fn reign(&mut self) -> Result<Reign, StoreError> {
        let session = match self {
            Self::Alone(store) => {
                // It leads once, to its end.
                let Some(mut store) = store.take() else { return std::future::pending().await };
                let begun = begin_term(store.as_mut())?;
                return Ok(Reign { begun, store, tenure: Tenure::forever() });
            }
            Self::Shared(session) => session,
        };
        let mut position = session.position();
        loop {
            let seen = position.wait_for(|position| position.chance.is_some()).await;
            let chance = seen.ok().and_then(|position| position.chance);
            let Some(chance) = chance else {
                return Err(StoreError::Etcd("the session with etcd has ended".to_owned()));
            };
            let mut store = session.candidate(chance);
            // It waits for etcd, and this thread goes on answering.
            let begun = tokio::task::spawn_blocking(move || (begin_term(&mut store), store)).await;
            match begun {
                Ok((Ok(begun), store)) => {
                    return Ok(Reign { begun, store: Box::new(store), tenure: session.tenure() });
                }
                Ok((Err(error @ StoreError::Deposed(_)), _)) => {
                    debug!(%error, "another head was faster");
                    // Not the same chance again.
                    let _ = position.wait_for(|position| position.chance != Some(chance)).await;
                }
                Ok((Err(error @ StoreError::Etcd(_)), _)) => {
                    warn!(%error, "cannot begin to lead");
                    tokio::time::sleep(PAUSE).await;
                }
                Ok((Err(error), _)) => return Err(error),
                Err(_) => return Err(StoreError::Etcd("beginning to lead ended unexpectedly".to_owned())),
            }
        }
    }

    /// This head ends: another may lead at once.
    pub(crate) fn leave(&self) {
        if let Self::Shared(session) = self {
            session.leave();
        }
    }
}
