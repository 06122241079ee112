//! The connections of conversations: made by the callers' node, again and again while that is worth it.

use std::net::TcpStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cluster_proto::Codec;
use cluster_proto::frame::{FrameReader, write_frame};
use cluster_types::NodeId;
use cluster_types::node_node::TunnelWelcome;
use tokio::time::{sleep, timeout};

use super::Key;
use super::conversation::ATTEMPT;
use crate::client_socket::{ClientSocket, Received};
use crate::clients::SocketLink;
use crate::event_loop::Handle;

/// Without any connection so far, a node is taken to be out of reach after this.
const FIRST_WITHIN: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(200);
/// A stranger's hello must come within this.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Why there is no connection.
enum Failed {
    /// Worth another attempt.
    Now(String),
    /// It would be the same again.
    ForGood(String),
}

/// Keeps the conversation connected until it is over.
pub(crate) async fn connect(handle: Handle, node: NodeId, number: u64) {
    let key = (node, true);
    let begun = Instant::now();
    let mut connected = false;
    loop {
        let Some((address, hello)) = handle.borrow().tunnel_hello(node, number) else { return };
        let mut frame = BytesMut::new();
        write_frame(&mut frame, |out| Codec::encode_tunnel_hello(&hello, out));
        let attempt = timeout(ATTEMPT, reach(&handle, address.clone(), frame));
        let failed = match attempt.await.unwrap_or_else(|_| Err(Failed::Now("it does not answer".to_owned())))
        {
            Ok((link, mut frames, received)) => {
                connected = true;
                handle.borrow().tunnel_connected(key, number, received, &link);
                let trouble = serve(&handle, key, number, &link, &mut frames).await;
                handle.borrow().tunnel_broke(key, number, Some(&link), trouble);
                continue;
            }
            Err(failed) => failed,
        };
        let (trouble, over) = match failed {
            Failed::Now(trouble) => (trouble, !connected && begun.elapsed() > FIRST_WITHIN),
            Failed::ForGood(trouble) => (trouble, true),
        };
        let trouble = format!("connecting to {address}: {trouble}");
        if over {
            return handle.borrow().tunnel_failed(key, number, &trouble);
        }
        handle.borrow().tunnel_broke(key, number, None, trouble);
        sleep(PAUSE).await;
    }
}

/// One attempt.
async fn reach(
    handle: &Handle,
    address: String,
    hello: BytesMut,
) -> Result<(Rc<SocketLink>, FrameReader, u64), Failed> {
    let token = handle.borrow().token.clone();
    let connecting = tokio::task::spawn_blocking(move || {
        cluster_store::transfer::open_tunnel(&address, token.as_bytes(), ATTEMPT)
    });
    let stream = match connecting.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Failed::Now(all_causes(&error))),
        Err(_) => return Err(Failed::ForGood("this daemon ends".to_owned())),
    };
    let link = watched(handle, stream).map_err(|error| Failed::Now(error.to_string()))?;
    // A few bytes into an empty buffer.
    link.socket().try_send(&hello, &[]).map_err(|error| Failed::Now(error.to_string()))?;
    let mut frames = FrameReader::default();
    let welcome = first_frame(&link, &mut frames).await.map_err(Failed::Now)?;
    match Codec::decode_tunnel_welcome(welcome).map_err(|error| Failed::ForGood(error.to_string()))? {
        TunnelWelcome::Here { received } => Ok((link, frames, received)),
        TunnelWelcome::Refused(reason) => Err(Failed::ForGood(format!("it says: {reason}"))),
    }
}

/// Another node connects.
pub(crate) async fn accept(handle: Handle, stream: TcpStream) {
    let Ok(link) = watched(&handle, stream) else { return };
    let mut frames = FrameReader::default();
    let Ok(Ok(frame)) = timeout(HELLO_WITHIN, first_frame(&link, &mut frames)).await else { return };
    let hello = match Codec::decode_tunnel_hello(frame) {
        Ok(hello) => hello,
        Err(error) => return say(&link, &TunnelWelcome::Refused(error.to_string())),
    };
    let taken = {
        let mut daemon = handle.borrow();
        let taken = daemon.take_hello(&hello);
        daemon.pump();
        taken
    };
    let (key, number) = ((hello.from, false), hello.conversation);
    match taken {
        Err(reason) => return say(&link, &TunnelWelcome::Refused(reason)),
        Ok(received) => say(&link, &TunnelWelcome::Here { received }),
    }
    handle.borrow().tunnel_connected(key, number, hello.received, &link);
    let trouble = serve(&handle, key, number, &link, &mut frames).await;
    handle.borrow().tunnel_broke(key, number, Some(&link), trouble);
}

fn say(link: &SocketLink, welcome: &TunnelWelcome) {
    let mut frame = BytesMut::new();
    write_frame(&mut frame, |out| Codec::encode_tunnel_welcome(welcome, out));
    link.write(&mut frame, Vec::new());
}

/// A connection on the event loop.
fn watched(handle: &Handle, stream: TcpStream) -> std::io::Result<Rc<SocketLink>> {
    stream.set_nonblocking(true)?;
    Ok(SocketLink::new(ClientSocket::of(stream.into(), handle.scratch.clone())?))
}

async fn first_frame(link: &SocketLink, frames: &mut FrameReader) -> Result<Bytes, String> {
    loop {
        if let Some(frame) = frames.next_frame().map_err(|error| error.to_string())? {
            return Ok(frame);
        }
        if link.socket().receive(frames).await == Received::End {
            return Err("it closed the connection".to_owned());
        }
    }
}

/// Until the connection is of no use; why.
async fn serve(
    handle: &Handle,
    key: Key,
    number: u64,
    link: &Rc<SocketLink>,
    frames: &mut FrameReader,
) -> String {
    let trouble = tokio::select! {
        biased;
        trouble = read(handle, key, number, link, frames) => trouble,
        () = link.write_leftovers() => "the connection broke".to_owned(),
        () = link.broken.notified() => "the connection was given up".to_owned(),
    };
    // What is on its way is not to arrive after all: the other end gives up in time only if nothing does.
    let _ = rustix::net::sockopt::set_socket_linger(link.socket(), Some(Duration::ZERO));
    trouble
}

async fn read(handle: &Handle, key: Key, number: u64, link: &SocketLink, frames: &mut FrameReader) -> String {
    loop {
        {
            let mut daemon = handle.borrow();
            let mut heard = false;
            let result = loop {
                match frames.next_frame() {
                    Ok(Some(frame)) => {
                        heard = true;
                        if let Err(reason) = daemon.hear_peer(key, number, frame) {
                            break Err(reason);
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error.to_string()),
                }
            };
            if heard {
                daemon.heard_peer(key);
            }
            if let Err(reason) = result {
                return reason;
            }
        }
        if link.socket().receive(frames).await == Received::End {
            return "the other end closed the connection".to_owned();
        }
    }
}

fn all_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
