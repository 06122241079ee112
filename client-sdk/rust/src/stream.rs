//! What a task yields, as its caller reads it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use client_runtime::Taking;
use cluster_types::TaskId;

use crate::object::{Live, ObjectRef};
use crate::{Error, Result, current};

/// The refs of what a task yields, one after the other, while it runs. Dropped, it ends the task at its next item.
///
/// A task that fails gives what it yielded, and one more ref, whose `get` tells the failure.
pub struct Stream<T> {
    inner: std::result::Result<(Live, TaskId), Option<Arc<Error>>>,
    value: PhantomData<fn() -> T>,
}

impl<T> Stream<T> {
    pub(crate) fn of(call: Result<Live>) -> Self {
        let inner = call.and_then(|live| match live.id.task() {
            Some((task, _)) => Ok((live, task)),
            None => Err(Error::Misuse("the call has no stream".to_owned())),
        });
        Stream { inner: inner.map_err(|error| Some(Arc::new(error))), value: PhantomData }
    }

    /// The next item's ref; waits until it is there. `None`: there are no more.
    ///
    /// # Errors
    /// If the connection is of no use, or the running task was cancelled.
    pub fn try_next(&mut self) -> Result<Option<ObjectRef<T>>> {
        let (live, task) = match &mut self.inner {
            Ok(known) => known,
            Err(told) => {
                return match told.take() {
                    Some(error) => Err((*error).clone()),
                    None => Ok(None),
                };
            }
        };
        match live.client.next_item(None, *task, None, &mut current::interrupt)? {
            Taking::Item(id) => Ok(Some(ObjectRef::of(&live.client, id))),
            Taking::NotYet(_) | Taking::End => Ok(None),
        }
    }
}

impl<T> Iterator for Stream<T> {
    type Item = ObjectRef<T>;

    fn next(&mut self) -> Option<ObjectRef<T>> {
        match self.try_next() {
            Ok(next) => next,
            Err(error) => {
                // Told once, where the item would be.
                self.inner = Err(None);
                Some(ObjectRef::from_call(Err(error)))
            }
        }
    }
}

impl<T> Drop for Stream<T> {
    fn drop(&mut self) {
        if let Ok((live, task)) = &self.inner {
            live.client.close_stream(*task);
        }
    }
}

impl<T> fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner {
            Ok((_, task)) => write!(f, "Stream({task})"),
            Err(error) => write!(f, "Stream({error:?})"),
        }
    }
}
