//! Sending a tree to a gateway, fetching one from there.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster_proto::auth::AddToken;
use cluster_proto::limits::{MAX_CHUNK_NAMES, MAX_PACKAGE_LIST};
use cluster_proto::v1;
use cluster_proto::v1::head_client::HeadClient;
use cluster_proto::v1::packages_client::PackagesClient;
use cluster_types::PROTOCOL_VERSION;
use cluster_types::job::Package;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};

use crate::chunks::{ChunkName, Chunks};
use crate::pack::Packed;
use crate::{Entry, EntryKind, PackageError};

type Client = PackagesClient<InterceptedService<Channel, AddToken>>;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection on which nothing comes back for so long, though asked for, is cut.
const ASKED_EVERY: Duration = Duration::from_secs(3);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// A gateway that never answered is given up after so many tries.
const TRIES: u32 = 5;
/// For how long one that did answer may be out of reach, as for a remote client.
const AWAY: Duration = Duration::from_secs(600);
/// The longest pause between two tries.
const PAUSE: Duration = Duration::from_secs(5);
/// Chunks read ahead of the stream.
const AHEAD: usize = 8;
/// Chunks asked for at a time.
const FETCHED_AT_ONCE: usize = 256;

/// Who has files for a cluster: asks its head.
///
/// # Errors
/// If nobody answers, or no node is a gateway.
pub async fn find_gateway(head: &str, token: &str) -> Result<String, PackageError> {
    let channel = connect(head).await?;
    let mut client = HeadClient::with_interceptor(channel, AddToken::new(token));
    let request = v1::FindGatewayRequest { protocol: PROTOCOL_VERSION };
    let reply = client.find_gateway(request).await.map_err(|status| away(head, &status))?.into_inner();
    reply.addresses.into_iter().next().ok_or_else(|| {
        PackageError::Away(format!("no node of the cluster at {head} takes files: is its worker daemon up?"))
    })
}

/// How an upload goes.
pub enum Progress<'a> {
    /// Bytes that went, of those that the gateway did not have.
    Sent(u64, u64),
    /// The connection is lost, and this is why; it is tried again for so long.
    Lost(&'a str, Duration),
}

/// Sends what the gateway does not have. How many bytes that was. An upload that is cut off goes on where it was.
///
/// # Errors
/// If the gateway cannot be reached, or a file changed meanwhile.
pub async fn send(
    packed: &Packed,
    gateway: &str,
    token: &str,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<u64, PackageError> {
    let mut upload = Upload::default();
    let mut pause = Duration::from_millis(200);
    let mut lost: Option<(Instant, u64)> = None;
    let mut tried = 0;
    loop {
        let reason = match upload.send_missing(packed, gateway, token, &mut progress).await {
            Err(PackageError::Away(reason)) => reason,
            other => return other.map(|()| upload.sent),
        };
        let (since, _) = match lost.filter(|(_, sent)| *sent == upload.sent) {
            Some(known) => known,
            None => {
                if upload.answered {
                    progress(Progress::Lost(&reason, AWAY));
                }
                pause = Duration::from_millis(200);
                *lost.insert((Instant::now(), upload.sent))
            }
        };
        tried += 1;
        if !upload.answered && tried >= TRIES {
            return Err(PackageError::Away(reason));
        }
        if since.elapsed() > AWAY {
            return Err(PackageError::Away(format!(
                "{reason}. It was tried for {} minutes; what had arrived is kept there for an hour, so that the next \
                 time only the rest is sent",
                AWAY.as_secs() / 60
            )));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE);
    }
}

/// Copies what is not there to a directory of chunks on this machine.
///
/// # Errors
/// If a file cannot be read or written.
pub fn keep(packed: &Packed, chunks: &Chunks) -> Result<(), PackageError> {
    for (name, (path, at, length)) in &packed.places {
        if !chunks.has(*name) {
            let mut bytes = vec![0; *length];
            let mut file = File::open(path).map_err(PackageError::file(path))?;
            file.seek(SeekFrom::Start(*at)).map_err(PackageError::file(path))?;
            file.read_exact(&mut bytes).map_err(PackageError::file(path))?;
            chunks.write(&bytes).map_err(PackageError::file(&chunks.path(*name)))?;
        }
    }
    chunks.write(&packed.list).map(drop).map_err(PackageError::file(&chunks.path(packed.name)))
}

/// What is known of an upload from one connection to the next.
#[derive(Default)]
struct Upload {
    sent: u64,
    /// The gateway did answer: it is there, and will be again.
    answered: bool,
}

impl Upload {
    async fn send_missing(
        &mut self,
        packed: &Packed,
        gateway: &str,
        token: &str,
        progress: &mut impl FnMut(Progress<'_>),
    ) -> Result<(), PackageError> {
        let mut client = packages(gateway, token).await?;
        // The list goes last: who has it has all.
        let mut wanted: Vec<ChunkName> = packed.places.keys().copied().collect();
        wanted.sort_unstable_by(|one, other| packed.places[one].cmp(&packed.places[other]));
        let missing = missing(&mut client, &wanted, gateway).await?;
        self.answered = true;
        let length = |chunk: &ChunkName| packed.places.get(chunk).map_or(0, |(_, _, length)| *length as u64);
        let total: u64 = missing.iter().map(length).sum();
        let (chunks, stream) = mpsc::channel::<v1::Chunk>(AHEAD);
        let places = missing.iter().map(|chunk| (*chunk, packed.places[chunk].clone())).collect::<Vec<_>>();
        let list = Bytes::from(packed.list.clone());
        let (told, mut heard) = mpsc::channel::<u64>(AHEAD);
        let reader = tokio::task::spawn_blocking(move || -> Result<(), PackageError> {
            let mut open: Option<(std::path::PathBuf, File)> = None;
            for (name, (path, at, length)) in places {
                let same = open.take().filter(|(known, _)| *known == path);
                let (_, file) = match same {
                    Some(same) => open.insert(same),
                    None => {
                        open.insert((path.clone(), File::open(&path).map_err(PackageError::file(&path))?))
                    }
                };
                let mut bytes = vec![0; length];
                file.seek(SeekFrom::Start(at)).map_err(PackageError::file(&path))?;
                file.read_exact(&mut bytes).map_err(PackageError::file(&path))?;
                if ChunkName::of(&bytes) != name {
                    return Err(PackageError::Wrong(format!(
                        "{} changed while it was sent: try again",
                        path.display()
                    )));
                }
                if chunks.blocking_send(v1::Chunk { bytes: bytes.into() }).is_err() {
                    return Ok(());
                }
                let _ = told.blocking_send(length as u64);
            }
            let _ = chunks.blocking_send(v1::Chunk { bytes: list });
            Ok(())
        });
        let put = client.put(ReceiverStream::new(stream));
        tokio::pin!(put);
        let mut done = 0;
        let reply = loop {
            tokio::select! {
                reply = &mut put => break reply,
                Some(more) = heard.recv() => {
                    done += more;
                    self.sent += more;
                    progress(Progress::Sent(done, total));
                }
            }
        };
        // The reader must not wait for somebody to hear how far it is.
        drop(heard);
        reader.await.map_err(|error| PackageError::Wrong(error.to_string()))??;
        reply.map_err(|status| away(gateway, &status))?;
        Ok(())
    }
}

async fn missing(
    client: &mut Client,
    wanted: &[ChunkName],
    gateway: &str,
) -> Result<Vec<ChunkName>, PackageError> {
    let mut missing = Vec::new();
    for names in wanted.chunks(MAX_CHUNK_NAMES) {
        let names = names.iter().map(|name| Bytes::copy_from_slice(&name.0)).collect();
        let reply =
            client.missing(v1::ChunkNames { names }).await.map_err(|status| away(gateway, &status))?;
        missing.extend(reply.into_inner().names.iter().filter_map(|name| ChunkName::from_slice(name)));
    }
    let known: std::collections::HashSet<&ChunkName> = wanted.iter().collect();
    missing.retain(|name| known.contains(name));
    Ok(missing)
}

/// Writes a tree into a directory, with what is not among `chunks` fetched from where it was sent.
///
/// # Errors
/// If something cannot be had or written.
pub async fn fetch(
    package: &Package,
    token: &str,
    chunks: &Chunks,
    into: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), PackageError> {
    let name = ChunkName::parse(&package.hash)
        .ok_or_else(|| PackageError::Wrong(format!("{} is no name of a package", package.hash)))?;
    let mut client = None;
    if !chunks.has(name) {
        get(&mut client, package, token, chunks, &[name]).await?;
    }
    let list = chunks.read(name).map_err(PackageError::file(&chunks.path(name)))?;
    let entries: Vec<Entry> = serde_json::from_slice(&list)
        .map_err(|error| PackageError::Wrong(format!("a list of files: {error}")))?;
    let mut missing: Vec<ChunkName> = Vec::new();
    for entry in &entries {
        if let EntryKind::File { chunks: of_file, .. } = &entry.kind {
            missing.extend(of_file.iter().filter(|name| !chunks.has(**name)));
        }
    }
    let mut known = std::collections::HashSet::new();
    missing.retain(|name| known.insert(*name));
    for (at, names) in missing.chunks(FETCHED_AT_ONCE).enumerate() {
        progress((at * FETCHED_AT_ONCE) as u64, missing.len() as u64);
        get(&mut client, package, token, chunks, names).await?;
    }
    entries.iter().try_for_each(|entry| write_entry(entry, chunks, into))
}

async fn get(
    client: &mut Option<Client>,
    package: &Package,
    token: &str,
    chunks: &Chunks,
    names: &[ChunkName],
) -> Result<(), PackageError> {
    if package.at.is_empty() {
        return Err(PackageError::Wrong(
            "its files are only on the node from which it was submitted".to_owned(),
        ));
    }
    let client = match client {
        Some(client) => client,
        none => none.insert(packages(&package.at, token).await?),
    };
    let request =
        v1::ChunkNames { names: names.iter().map(|name| Bytes::copy_from_slice(&name.0)).collect() };
    let failed = |status: tonic::Status| away(&package.at, &status);
    let mut stream = client.get(request).await.map_err(failed)?.into_inner();
    for name in names {
        let chunk = stream.message().await.map_err(failed)?;
        let bytes = chunk.map(|chunk| chunk.bytes).unwrap_or_default();
        if ChunkName::of(&bytes) != *name {
            return Err(PackageError::Away(format!("{} sent something else than chunk {name}", package.at)));
        }
        chunks.write(&bytes).map_err(PackageError::file(&chunks.path(*name)))?;
    }
    Ok(())
}

fn write_entry(entry: &Entry, chunks: &Chunks, into: &Path) -> Result<(), PackageError> {
    let relative = Path::new(&entry.path);
    // A list that somebody made by hand must not write elsewhere.
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(PackageError::Wrong(format!("{} is no path within a package", entry.path)));
    }
    let path = into.join(relative);
    let failed = || PackageError::file(&path);
    if let Some(parent) = path.parent() {
        // Nor through a link that came before.
        if parent.canonicalize().is_ok_and(|real| !real.starts_with(into)) {
            return Err(PackageError::Wrong(format!("{} lies behind a link out of its package", entry.path)));
        }
        fs::create_dir_all(parent).map_err(failed())?;
    }
    match &entry.kind {
        EntryKind::Directory {} => fs::create_dir_all(&path).map_err(failed()),
        EntryKind::Link(target) => {
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink(target, &path).map_err(failed())
        }
        EntryKind::File { program, chunks: names, .. } => {
            let mut file = File::create(&path).map_err(failed())?;
            for name in names {
                let mut chunk = File::open(chunks.path(*name)).map_err(failed())?;
                // In the kernel, where it can.
                std::io::copy(&mut chunk, &mut file).map_err(failed())?;
            }
            file.flush().map_err(failed())?;
            if *program {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(failed())?;
            }
            Ok(())
        }
    }
}

async fn packages(gateway: &str, token: &str) -> Result<Client, PackageError> {
    let channel = connect(gateway).await?;
    let most = MAX_PACKAGE_LIST + 1024;
    Ok(PackagesClient::with_interceptor(channel, AddToken::new(token))
        .max_decoding_message_size(most)
        .max_encoding_message_size(most))
}

async fn connect(address: &str) -> Result<Channel, PackageError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| PackageError::Wrong(format!("`{address}` is no address: write HOST:PORT")))?
        .http2_keep_alive_interval(ASKED_EVERY)
        .keep_alive_timeout(ANSWERED_WITHIN);
    let connected =
        tokio::time::timeout(CONNECT_WITHIN, endpoint.connect_timeout(CONNECT_WITHIN).connect()).await;
    match connected {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(PackageError::Away(format!("cannot reach {address}: {error}"))),
        Err(_) => Err(PackageError::Away(format!("{address} does not answer"))),
    }
}

fn away(address: &str, status: &tonic::Status) -> PackageError {
    let said = format!("{address}: {}", status.message());
    match status.code() {
        // It would say so again.
        Code::InvalidArgument | Code::ResourceExhausted | Code::Unauthenticated | Code::PermissionDenied => {
            PackageError::Wrong(said)
        }
        _ => PackageError::Away(said),
    }
}
