//! This program's own file, as the executor of its tasks.

use std::collections::BTreeMap;

use client_runtime::{Client, HandleSource, Kind};
use cluster_types::ObjectId;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::{Error, Result, current};

/// The variable that names the program of a task's executor: its hash, its platform, and the object that holds it.
pub(crate) const PROGRAM: &str = "CLUSTER_PROGRAM";

struct Known {
    generation: u64,
    object: ObjectId,
    named: String,
}

static KNOWN: Mutex<Option<Known>> = Mutex::new(None);

/// The object that holds this program, and the environment variables of executors that are to be it. The first call
/// after a connect puts it.
pub(crate) fn own(client: &Client) -> Result<(ObjectId, BTreeMap<String, String>)> {
    let mut known = KNOWN.lock();
    let generation = current::generation();
    if known.as_ref().is_none_or(|known| known.generation != generation) {
        let (object, named) = match std::env::var(PROGRAM) {
            // An executor: it was started from that object, which its task holds.
            Ok(named) if crate::executor::is_executor() => {
                let object = named.rsplit(' ').next().and_then(|id| id.parse().ok());
                let object = object.ok_or_else(|| Error::Misuse(format!("{PROGRAM} is {named:?}")))?;
                client.add_handle(object, HandleSource::Task);
                (object, named)
            }
            _ => put(client)?,
        };
        *known = Some(Known { generation, object, named });
    }
    let known = known.as_ref().ok_or_else(|| Error::Misuse("no program".to_owned()))?;
    Ok((known.object, BTreeMap::from([(PROGRAM.to_owned(), known.named.clone())])))
}

fn put(client: &Client) -> Result<(ObjectId, String)> {
    let own = "/proc/self/exe";
    let bytes = std::fs::read(own)
        .map_err(|error| Error::Misuse(format!("this program's own file ({own}) cannot be read: {error}")))?;
    put_bytes(client, &bytes)
}

/// Puts a program; the handle is never dropped.
pub(crate) fn put_bytes(client: &Client, bytes: &[u8]) -> Result<(ObjectId, String)> {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let draft = client.reserve(Kind::RAW, bytes.len(), &[], &mut current::interrupt)?;
    let parcel = draft.write(bytes, &[], &mut current::interrupt)?;
    let object = client.put(parcel, &[])?;
    let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    Ok((object, format!("{hash} {platform} {object}")))
}
