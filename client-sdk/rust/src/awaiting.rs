//! `.await` on refs, in any async runtime: one thread wakes all that wait.

use std::collections::HashMap;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use client_runtime::{Client, CompletionQueue, HandleSource};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;

use crate::object::ObjectRef;
use crate::{Error, Result, codec, current};

/// How often the thread looks whether the connection has ended while nobody waits.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Tells wakers what is ready.
struct Waiting {
    generation: u64,
    queue: CompletionQueue,
    wakers: Arc<Mutex<HashMap<u64, Waker>>>,
}

static WAITING: Mutex<Option<Arc<Waiting>>> = Mutex::new(None);
static TOKENS: AtomicU64 = AtomicU64::new(0);

fn waiting(client: &Client) -> Result<Arc<Waiting>> {
    let mut known = WAITING.lock();
    let generation = current::generation();
    if let Some(waiting) = &*known
        && waiting.generation == generation
    {
        return Ok(waiting.clone());
    }
    let queue = client.completion_queue()?;
    let waiting = Arc::new(Waiting { generation, queue, wakers: Arc::default() });
    let (queue, wakers, client) = (waiting.queue.clone(), waiting.wakers.clone(), client.clone());
    let error = |error: std::io::Error| Error::Misuse(format!("no thread can be started: {error}"));
    std::thread::Builder::new()
        .name("cml-await".to_owned())
        .spawn(move || wake(&client, &queue, &wakers))
        .map_err(error)?;
    *known = Some(waiting.clone());
    Ok(waiting)
}

/// Until the connection is of no use any more; then all are woken to learn that.
fn wake(client: &Client, queue: &CompletionQueue, wakers: &Mutex<HashMap<u64, Waker>>) {
    loop {
        // Not by reading the connection: that would take it from threads in a hurry.
        let mut fds = [PollFd::new(queue, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&LOOK));
        let tokens = queue.drain();
        let ended = client.broken().is_some();
        let mut wakers = wakers.lock();
        let ready: Vec<Waker> = match ended {
            true => wakers.drain().map(|(_, waker)| waker).collect(),
            false => tokens.iter().filter_map(|token| wakers.remove(token)).collect(),
        };
        drop(wakers);
        ready.into_iter().for_each(Waker::wake);
        if ended {
            return;
        }
    }
}

/// Waits for a ref's value without holding a thread.
pub struct Getting<T> {
    object: ObjectRef<T>,
    waiting: Option<(u64, Arc<Waiting>)>,
}

impl<T> std::fmt::Debug for Getting<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Getting").field(&self.object).finish()
    }
}

impl<T: DeserializeOwned> Future for Getting<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let this = &mut *self;
        let live = this.object.live()?;
        if let Some(got) = live.client.try_get(live.id) {
            return Poll::Ready(codec::value(&live.client, &got, HandleSource::Inside(live.id)));
        }
        if let Some(error) = live.client.broken() {
            return Poll::Ready(Err(error.into()));
        }
        let is_first = this.waiting.is_none();
        let (token, waiting) = match &this.waiting {
            Some((token, waiting)) => (*token, waiting.clone()),
            None => {
                let waiting = waiting(&live.client)?;
                (TOKENS.fetch_add(1, Ordering::Relaxed), waiting)
            }
        };
        let was_woken = waiting.wakers.lock().insert(token, context.waker().clone()).is_none();
        // After the waker is there: what is ready already is told at once.
        if is_first || was_woken {
            live.client.on_ready(live.id, &waiting.queue, token)?;
        }
        this.waiting = Some((token, waiting));
        Poll::Pending
    }
}

impl<T> Drop for Getting<T> {
    fn drop(&mut self) {
        if let Some((token, waiting)) = &self.waiting {
            waiting.wakers.lock().remove(token);
        }
    }
}

impl<T> Unpin for Getting<T> {}

impl<T: DeserializeOwned> IntoFuture for ObjectRef<T> {
    type Output = Result<T>;
    type IntoFuture = Getting<T>;

    fn into_future(self) -> Getting<T> {
        Getting { object: self, waiting: None }
    }
}

impl<T: DeserializeOwned> IntoFuture for &ObjectRef<T> {
    type Output = Result<T>;
    type IntoFuture = Getting<T>;

    fn into_future(self) -> Getting<T> {
        Getting { object: self.clone(), waiting: None }
    }
}
