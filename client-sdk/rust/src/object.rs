//! Refs: handles on values.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client_runtime::{Client, HandleSource, Kind};
use cluster_types::ObjectId;
use cluster_types::client_node::Cancellation;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{self, CONTEXT, Extension, REFERENCE};
use crate::{Error, Result, current};

/// A handle on a value of type `T` that a task makes, or that was put. Cheap to clone; the value is kept while anybody
/// has a handle. Pass it to tasks: as an argument itself it becomes its value there, inside other values it stays a ref.
///
/// `get()` waits for the value, `.await` waits without holding the thread.
pub struct ObjectRef<T> {
    pub(crate) inner: Inner,
    value: PhantomData<fn() -> T>,
}

pub(crate) enum Inner {
    Live(Live),
    /// The call could not be made.
    Never(Arc<Error>),
}

#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) client: Client,
    pub(crate) id: ObjectId,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.client.drop_handle(self.id);
    }
}

impl Clone for Live {
    fn clone(&self) -> Live {
        self.client.add_handle(self.id, HandleSource::Elsewhere);
        Live { client: self.client.clone(), id: self.id }
    }
}

impl<T> Clone for ObjectRef<T> {
    fn clone(&self) -> Self {
        let inner = match &self.inner {
            Inner::Live(live) => Inner::Live(live.clone()),
            Inner::Never(error) => Inner::Never(error.clone()),
        };
        ObjectRef { inner, value: PhantomData }
    }
}

impl<T> fmt::Debug for ObjectRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner {
            Inner::Live(live) => write!(f, "ObjectRef({})", live.id),
            Inner::Never(error) => write!(f, "ObjectRef({error})"),
        }
    }
}

impl<T> ObjectRef<T> {
    /// Takes over a handle.
    pub(crate) fn of(client: &Client, id: ObjectId) -> Self {
        ObjectRef { inner: Inner::Live(Live { client: client.clone(), id }), value: PhantomData }
    }

    pub(crate) fn from_call(call: Result<Live>) -> Self {
        let inner = call.map_or_else(|error| Inner::Never(Arc::new(error)), Inner::Live);
        ObjectRef { inner, value: PhantomData }
    }

    pub(crate) fn live(&self) -> Result<&Live> {
        match &self.inner {
            Inner::Live(live) => Ok(live),
            Inner::Never(error) => Err((**error).clone()),
        }
    }

    /// The same ref, taken for one of another type: of a value that another language made, say.
    pub fn cast<U>(&self) -> ObjectRef<U> {
        let inner = self.clone().inner;
        ObjectRef { inner, value: PhantomData }
    }

    /// Its id, as it prints everywhere.
    ///
    /// # Errors
    /// If the call could not be made.
    pub fn id(&self) -> Result<String> {
        Ok(self.live()?.id.to_string())
    }

    /// Whether the value, or the failure in its place, is known to exist.
    pub fn is_ready(&self) -> bool {
        self.live().map_or(true, |live| live.client.is_ready(live.id))
    }

    /// Asks that the task which makes this be cancelled, and what it submitted. Rust code is not interrupted: it notices
    /// in `get` and other waits, or asks [`crate::is_cancelled`].
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn cancel(&self) -> Result<()> {
        self.cancel_with(false)
    }

    /// As [`ObjectRef::cancel`]; the task's process is ended, whatever it does.
    ///
    /// # Errors
    /// If the connection is of no use.
    pub fn cancel_by_force(&self) -> Result<()> {
        self.cancel_with(true)
    }

    fn cancel_with(&self, force: bool) -> Result<()> {
        let live = self.live()?;
        let reason = format!("cancelled by process {}", std::process::id());
        Ok(live.client.cancel(Cancellation { object: live.id, force, recursive: true, reason })?)
    }
}

impl<T: DeserializeOwned> ObjectRef<T> {
    /// Waits for the value.
    ///
    /// # Errors
    /// [`Error::Task`] if its task failed; if the value is of another type; if the connection is of no use.
    pub fn get(&self) -> Result<T> {
        self.get_by(None)
    }

    /// As [`ObjectRef::get`], for so long.
    ///
    /// # Errors
    /// As [`ObjectRef::get`], and [`Error::TimedOut`].
    pub fn get_timeout(&self, patience: Duration) -> Result<T> {
        self.get_by(Some(Instant::now() + patience))
    }

    fn get_by(&self, deadline: Option<Instant>) -> Result<T> {
        let live = self.live()?;
        let got = live.client.get(&[live.id], deadline, &mut current::interrupt)?;
        let got = got.first().ok_or_else(|| Error::Misuse("no value came".to_owned()))?;
        codec::value(&live.client, got, HandleSource::Inside(live.id))
    }
}

/// Waits for all these values.
///
/// # Errors
/// As [`ObjectRef::get`], of the first that has none.
pub fn get<'a, T: DeserializeOwned + 'a>(refs: impl IntoIterator<Item = &'a ObjectRef<T>>) -> Result<Vec<T>> {
    let lives: Vec<&Live> = refs.into_iter().map(ObjectRef::live).collect::<Result<_>>()?;
    let Some(client) = lives.first().map(|live| live.client.clone()) else { return Ok(Vec::new()) };
    let ids: Vec<ObjectId> = lives.iter().map(|live| live.id).collect();
    let got = client.get(&ids, None, &mut current::interrupt)?;
    let values = got.iter().zip(&ids).map(|(got, id)| codec::value(&client, got, HandleSource::Inside(*id)));
    values.collect()
}

/// Makes an object of a value, to be passed by its ref.
///
/// # Errors
/// If it cannot be written, the store can never hold it, or the connection is of no use.
pub fn put<T: Serialize + ToOwned + ?Sized>(value: &T) -> Result<ObjectRef<T::Owned>> {
    put_as(Kind::BINCODE, value)
}

/// As [`put`], in the encoding that Python reads too. (Arrays alone always are.)
///
/// # Errors
/// As [`put`].
pub fn put_plain<T: Serialize + ToOwned + ?Sized>(value: &T) -> Result<ObjectRef<T::Owned>> {
    put_as(Kind::PLAIN, value)
}

fn put_as<T: Serialize + ?Sized, U>(kind: Kind, value: &T) -> Result<ObjectRef<U>> {
    let client = current::client()?;
    let (parcel, refs) = codec::parcel(&client, codec::parts(kind, value)?)?;
    let id = client.put(parcel, &refs.ids())?;
    Ok(ObjectRef::of(&client, id))
}

/// Waits until so many of the refs are ready, or the time has passed: the indices of ready ones, ascending, and of the
/// others.
///
/// # Errors
/// If the connection is of no use, or the running task was cancelled.
pub fn wait<T>(
    refs: &[ObjectRef<T>],
    num_ready: usize,
    timeout: Option<Duration>,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let Some(first) = refs.first() else { return Ok((Vec::new(), Vec::new())) };
    let client = &first.live()?.client;
    let ids = refs.iter().map(|object| Ok(object.live()?.id)).collect::<Result<Vec<_>>>()?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let ready = client.wait(&ids, num_ready, deadline, false, &mut current::interrupt)?;
    let rest = (0..refs.len()).filter(|index| ready.binary_search(index).is_err()).collect();
    Ok((ready, rest))
}

impl<T> Serialize for ObjectRef<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        let live = self.live().map_err(S::Error::custom)?;
        write_reference(live, serializer)
    }
}

pub(crate) fn write_reference<S: Serializer>(live: &Live, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::Error as _;
    let known = CONTEXT.with_borrow_mut(|context| {
        context.writing.as_mut().map(|writing| {
            if !writing.refs.iter().any(|known| known.id == live.id) {
                writing.refs.push(live.clone());
            }
        })
    });
    known.ok_or_else(|| {
        S::Error::custom("a ref is written only into the cluster's values, which keep its object")
    })?;
    Extension { tag: REFERENCE, body: live.id.to_bytes().to_vec() }.serialize(serializer)
}

impl<'de, T> Deserialize<'de> for ObjectRef<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let live = read_reference(deserializer)?;
        Ok(ObjectRef { inner: Inner::Live(live), value: PhantomData })
    }
}

pub(crate) fn read_reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Live, D::Error> {
    let extension = Extension::deserialize(deserializer)?;
    let bytes: Option<[u8; 16]> = extension.body.as_slice().try_into().ok();
    let (REFERENCE, Some(bytes)) = (extension.tag, bytes) else {
        return Err(D::Error::custom("it is no reference to an object"));
    };
    let reading = CONTEXT.with_borrow(|context| context.reading.clone());
    let reading = reading.ok_or_else(|| D::Error::custom("a ref is read only from the cluster's values"))?;
    let id = ObjectId::from_bytes(bytes);
    reading.client.add_handle(id, reading.source);
    Ok(Live { client: reading.client, id })
}
